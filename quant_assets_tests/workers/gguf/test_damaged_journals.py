"""Damaged journals, part files, records and jobs: the same bytes in the end, or a clear error."""

import errno
import io
import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from quant_assets.artifacts.output_record import read_record, record_path
from quant_assets.models.identity import sha256_of
from quant_assets.processes.protocol import EventChannel
from quant_assets.quantize.gguf.job import QuantizeGgufJob
from quant_assets.workers.gguf.__main__ import GgufJob
from quant_assets.workers.gguf.engine import quantize
from quant_assets.workers.gguf.journal import Journal
from quant_assets_tests.mutation import bounded, fuzz_settings, mutated

IDENTITY = {"source": "abc", "level": "Q4_K_M", "header": "0" * 64, "llama_cpp_python": "0.3.36"}
DIGESTS = [f"{number:064x}" for number in range(12)]
JOURNAL = (
    "\n".join(
        [
            json.dumps({"identity": IDENTITY}),
            *(json.dumps({"digest": digest}) for digest in DIGESTS),
        ]
    )
    + "\n"
).encode()
RECORD = json.dumps(
    {"source": "/models/a", "identity": IDENTITY, "sha256": "0" * 64, "result": {"bytes": 1}}
).encode()
JOB = (
    QuantizeGgufJob(
        source=Path("/models/a"),
        source_kind="hf",
        source_identity="abc",
        level="Q4_K_M",
        output=Path("/out/a.gguf"),
        threads=4,
    )
    .model_dump_json()
    .encode()
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("damaged")


@pytest.mark.fuzz
@given(data=mutated([JOURNAL]))
@fuzz_settings(1000)
def test_any_journal_is_read(folder: Path, data: bytes) -> None:
    path = folder / "journal"
    path.write_bytes(data)
    with bounded():
        identity, digests = Journal(path).read()
    assert all(isinstance(text, str) for text in [*identity, *identity.values(), *digests])
    assert identity or not digests


@pytest.mark.fuzz
@given(data=mutated([RECORD]))
@fuzz_settings(250)
def test_any_record_is_read(folder: Path, data: bytes) -> None:
    output = folder / "a.gguf"
    record_path(output).write_bytes(data)
    with bounded():
        record = read_record(output)
    assert record is None or isinstance(record.sha256, str)


@pytest.mark.fuzz
@given(data=mutated([JOB]))
@fuzz_settings(250)
def test_any_job_is_read_or_rejected(data: bytes) -> None:
    with bounded():
        try:
            job = GgufJob.model_validate_json(data).root
        except ValidationError:
            return
    assert job.task in ("plan", "quantize", "imatrix", "validate")


class Interrupted(NamedTuple):
    """A job stopped after 7 layers, its files, and the digest of an uninterrupted run."""

    job: QuantizeGgufJob
    part: bytes
    journal: bytes
    sha256: str


def run(job: QuantizeGgufJob) -> str:
    """Run the job in this process; returns the digest of its output."""
    result = quantize(job, EventChannel(io.StringIO()))
    assert result.sha256 == sha256_of(job.output)
    return result.sha256


def part_file(job: QuantizeGgufJob) -> Path:
    return job.output.with_name(f"{job.output.name}.part")


def journal_file(job: QuantizeGgufJob) -> Path:
    return job.output.with_name(f"{job.output.name}.part.journal")


@pytest.fixture(scope="module")
def interrupted(larger_bf16: Path, folder: Path) -> Interrupted:
    job = QuantizeGgufJob(
        source=larger_bf16,
        source_kind="gguf",
        source_identity="the larger model",
        level="Q8_0",
        output=folder / "interrupted" / "larger-Q8_0.gguf",
        threads=1,
        validate_output=False,
    )
    whole = run(job.model_copy(update={"output": folder / "whole.gguf"}))
    append = Journal.append
    done = 0

    def fail_later(self: Journal, digest: str) -> None:
        nonlocal done
        done += 1
        if done > 7:
            raise KeyboardInterrupt
        append(self, digest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Journal, "append", fail_later)
        with pytest.raises(KeyboardInterrupt):
            run(job)
    return Interrupted(job, part_file(job).read_bytes(), journal_file(job).read_bytes(), whole)


def resumed(interrupted: Interrupted, part: bytes, journal: bytes) -> str:
    """The digest of the output after resuming from these leftovers; nothing else remains."""
    with tempfile.TemporaryDirectory(dir=interrupted.job.output.parent) as folder:
        output = Path(folder) / interrupted.job.output.name
        job = interrupted.job.model_copy(update={"output": output})
        part_file(job).write_bytes(part)
        journal_file(job).write_bytes(journal)
        digest = run(job)
        assert list(Path(folder).iterdir()) == [output]
        return digest


@pytest.mark.fuzz
@given(data=st.data())
@fuzz_settings(24)
def test_a_damaged_journal_ends_in_the_same_bytes(
    interrupted: Interrupted, data: st.DataObject
) -> None:
    journal = data.draw(mutated([interrupted.journal]))
    with bounded():
        assert resumed(interrupted, interrupted.part, journal) == interrupted.sha256


@pytest.mark.fuzz
@given(data=st.data())
@fuzz_settings(8)
def test_a_damaged_part_file_ends_in_the_same_bytes(
    interrupted: Interrupted, data: st.DataObject
) -> None:
    part = data.draw(mutated([interrupted.part]))
    with bounded():
        assert resumed(interrupted, part, interrupted.journal) == interrupted.sha256


def test_leftovers_that_do_not_belong_together(interrupted: Interrupted) -> None:
    head, *layers = interrupted.journal.splitlines(keepends=True)
    part = interrupted.part
    for case, leftovers in {
        "layers that are not in the part file": (b"", interrupted.journal),
        "a shorter part file": (part[: len(part) // 3], interrupted.journal),
        "a longer part file": (part + b"\x01" * 1_000_003, interrupted.journal),
        "layers in another order": (part, head + b"".join(reversed(layers))),
        "more layers than the model has": (part, head + b"".join(layers * 4)),
        "two journals, one after the other": (part, interrupted.journal * 2),
        "another job's part file": (b"\x55" * len(part), interrupted.journal),
        "no journal": (b"\x55" * len(part), b""),
        "another job's journal": (part, JOURNAL),
        "a damaged header": (b"\x55" * 4096 + part[4096:], interrupted.journal),
    }.items():
        assert resumed(interrupted, *leftovers) == interrupted.sha256, case


def test_an_oversized_journal_is_not_read(interrupted: Interrupted) -> None:
    with bounded():
        oversized = interrupted.journal + b'{"digest": "0"}\n' * 1_000_000
        assert resumed(interrupted, interrupted.part, oversized) == interrupted.sha256


def test_a_disk_that_fills_up_in_the_middle_of_a_journal_line(
    interrupted: Interrupted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = interrupted.job.model_copy(update={"output": tmp_path / interrupted.job.output.name})
    job.output.write_bytes(b"an earlier file")
    write = os.write
    calls = 0

    def filling_up(descriptor: int, data: bytes | memoryview) -> int:
        nonlocal calls
        if not isinstance(data, memoryview):
            return write(descriptor, data)  # calls by libraries
        calls += 1
        if calls == 4:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(descriptor, data[:20] if calls == 3 else data)

    with monkeypatch.context() as patch:
        patch.setattr("quant_assets.workers.gguf.journal.os.write", filling_up)
        with pytest.raises(OSError, match="No space left"):
            run(job)
    assert not journal_file(job).read_bytes().endswith(b"\n"), "the last line is torn"
    assert job.output.read_bytes() == b"an earlier file"
    result = quantize(job, EventChannel(io.StringIO()))
    assert result.resumed_from_layer == 2 and result.sha256 == interrupted.sha256


def test_a_resumed_run_continues(interrupted: Interrupted, tmp_path: Path) -> None:
    """Undamaged leftovers are resumed."""
    job = interrupted.job.model_copy(update={"output": tmp_path / interrupted.job.output.name})
    for file, content in (
        (part_file(job), interrupted.part),
        (journal_file(job), interrupted.journal),
    ):
        file.write_bytes(content)
    result = quantize(job, EventChannel(io.StringIO()))
    assert result.resumed_from_layer == 7 and result.sha256 == interrupted.sha256
    shutil.rmtree(interrupted.job.output.parent)
