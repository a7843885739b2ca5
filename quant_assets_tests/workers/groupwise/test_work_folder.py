"""Interrupted runs: after SIGKILL at any moment, the same job produces the same bytes."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from quant_assets.errors import ResourceError
from quant_assets.models.identity import sha256_of
from quant_assets.models.source import SourceModel
from quant_assets.texts.calibration import CalibrationText
from quant_assets.workers.groupwise.work_folder import WorkFolder
from quant_assets_tests.mutation import bounded, fuzz_settings, mutated
from quant_assets_tests.workers.groupwise.groupwise_jobs import drive, job_of

IDENTITY = {"bits": "4", "source": "abc"}


@pytest.mark.quantizers
@pytest.mark.slow
@pytest.mark.parametrize("method", ["gptq", "awq"])
def test_ten_kills(
    method: str, source: SourceModel, calibration: CalibrationText, tmp_path: Path
) -> None:
    jobs = [job_of(source, calibration, tmp_path / str(number), method) for number in range(6)]
    results = drive(jobs, kills=2, seed=7)
    assert any(result.resumed_from_layer for result in results)
    for job, result in zip(jobs, results, strict=True):
        for name in result.files:
            assert sha256_of(job.output / name) == sha256_of(jobs[0].output / name)


@pytest.fixture
def work(tmp_path: Path) -> Path:
    """The work folder of a job that was interrupted after two layers."""
    folder = tmp_path / "work"
    work_folder = WorkFolder(folder, IDENTITY, resume=True)
    for layer in range(2):
        work_folder.save(
            layer, {"weight": torch.full((4,), float(layer))}, torch.full((2, 3), layer + 1.0)
        )
    work_folder.close()
    return folder


def test_work_resumes_after_the_last_finished_layer(work: Path) -> None:
    work_folder = WorkFolder(work, IDENTITY, resume=True)
    assert work_folder.done == 2 and work_folder.messages == []
    assert torch.equal(work_folder.states(), torch.full((2, 3), 2.0))
    assert sorted(path.name for path in work.iterdir()) == [
        "job.json", "journal.jsonl", "layer-00000.safetensors", "layer-00001.safetensors",
        "states-00002.safetensors",
    ]  # fmt: skip


def test_a_truncated_line_does_not_count_as_a_layer(work: Path) -> None:
    journal = work / "journal.jsonl"
    first, second = journal.read_text().splitlines(keepends=True)
    journal.write_text(first + second[:20])
    # They are removed only after the line is complete.
    save_file({"states": torch.full((2, 3), 1.0)}, work / "states-00001.safetensors")
    work_folder = WorkFolder(work, IDENTITY, resume=True)
    assert work_folder.done == 1 and work_folder.messages == []
    assert torch.equal(work_folder.states(), torch.full((2, 3), 1.0))
    assert journal.read_text() == first


@pytest.mark.parametrize("name", ["layer-00001.safetensors", "states-00002.safetensors"])
def test_damage_is_detected(work: Path, name: str) -> None:
    content = bytearray((work / name).read_bytes())
    content[-1] ^= 1
    (work / name).write_bytes(content)
    work_folder = WorkFolder(work, IDENTITY, resume=True)
    assert work_folder.done == 0
    assert "damaged" in work_folder.messages[0]


def test_another_job_starts_over_with_a_reason(work: Path) -> None:
    work_folder = WorkFolder(work, {**IDENTITY, "bits": "8"}, resume=True)
    assert work_folder.done == 0
    assert work_folder.messages == ["Starting over: bits was 4, is 8."]
    assert json.loads((work / "job.json").read_text())["bits"] == "8"
    assert not list(work.glob("*.safetensors"))


def test_work_is_discarded_on_request(work: Path) -> None:
    work_folder = WorkFolder(work, IDENTITY, resume=False)
    assert work_folder.done == 0 and "Discarding" in work_folder.messages[0]


def test_two_runs_do_not_share_a_folder(work: Path) -> None:
    first = WorkFolder(work, IDENTITY, resume=True)
    with pytest.raises(ResourceError, match="Another run"):
        WorkFolder(work, IDENTITY, resume=True)
    first.close()
    assert WorkFolder(work, IDENTITY, resume=True).done == 2


@pytest.fixture
def leftovers(work: Path) -> dict[str, bytes]:
    """The files of the interrupted job."""
    return {path.name: path.read_bytes() for path in work.iterdir()}


def reopened(folder: Path, files: dict[str, bytes]) -> tuple[int, list[float]]:
    """Number of layers accepted as finished, and the input states of the next one."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for name, content in files.items():
        (folder / name).write_bytes(content)
    work_folder = WorkFolder(folder, IDENTITY, resume=True)
    work_folder.close()
    states = work_folder.states().flatten().tolist() if work_folder.done else []
    return work_folder.done, states


@pytest.mark.fuzz
@given(data=st.data())
@fuzz_settings(500)
def test_damaged_leftovers_are_intact_or_unused(
    tmp_path: Path, leftovers: dict[str, bytes], data: st.DataObject
) -> None:
    name = data.draw(st.sampled_from(sorted(leftovers)))
    damaged = {**leftovers, name: data.draw(mutated([leftovers[name]]))}
    with bounded():
        done, states = reopened(tmp_path / "damaged", damaged)
    # The inputs of earlier layers are gone: resume after the last finished layer, or start over.
    assert (done, states) in ((2, [2.0] * 6), (0, []))


@pytest.mark.parametrize("name", ["job.json", "journal.jsonl"])
@pytest.mark.parametrize(
    "content", [b"[]", b"null", b"[" * 100_000, b"\xff\xfe", b'{"bits": 4}', b"", b"9" * 5000]
)
def test_an_invalid_record_starts_over(
    tmp_path: Path, leftovers: dict[str, bytes], name: str, content: bytes
) -> None:
    assert reopened(tmp_path / "damaged", {**leftovers, name: content})[0] == 0


@pytest.mark.parametrize("name", ["work", "work/journal.jsonl", "work.lock"])
def test_links_are_not_followed(tmp_path: Path, work: Path, name: str) -> None:
    victim = tmp_path / "victim"
    shutil.copytree(work, victim) if name == "work" else victim.write_text("somebody else's")
    path = tmp_path / name
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    path.symlink_to(victim)
    before = sorted(victim.iterdir()) if victim.is_dir() else victim.read_text()
    try:
        work_folder = WorkFolder(work, IDENTITY, resume=True)
        assert work_folder.done == 0
        work_folder.save(0, {"weight": torch.ones(4)}, torch.ones(2, 3))
        work_folder.close()
    except (ResourceError, OSError):
        assert name != "work/journal.jsonl"
    assert (sorted(victim.iterdir()) if victim.is_dir() else victim.read_text()) == before
