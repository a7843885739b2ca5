"""Shared output folders: no finished file is destroyed, and no link is followed."""

import io
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from quant_assets.artifacts.output_record import record_path
from quant_assets.artifacts.store import ArtifactStore
from quant_assets.errors import ConfirmationRequired, QuantAssetsError, ResourceError
from quant_assets.host import own_files
from quant_assets.models.identity import sha256_of
from quant_assets.models.source import SourceModel
from quant_assets.processes.protocol import Event, EventChannel, LogEvent
from quant_assets.processes.session import WorkerSession
from quant_assets.quantize.gguf.artifact import GgufArtifact, make_gguf_artifact
from quant_assets.quantize.gguf.job import ImatrixJob, QuantizeGgufJob, QuantizeGgufResult
from quant_assets.workers.gguf import engine, finished, imatrix
from quant_assets.workers.gguf.engine import quantize
from quant_assets.workers.gguf.journal import Journal


@pytest.fixture
def user_job(job: QuantizeGgufJob) -> QuantizeGgufJob:
    """The job as the command line creates it; Q8_0 is the fastest level."""
    return job.model_copy(
        update={
            "level": "Q8_0",
            "output": job.output.with_name("larger-Q8_0.gguf"),
            "record": True,
            "overwrite": False,
        }
    )


def run(job: QuantizeGgufJob) -> tuple[QuantizeGgufResult, list[str]]:
    stream = io.StringIO()
    result = quantize(job, EventChannel(stream))
    events = [json.loads(line) for line in stream.getvalue().splitlines()]
    return result, [event["message"] for event in events if event["event"] == "log"]


def part_of(job: QuantizeGgufJob) -> Path:
    return job.output.with_name(f"{job.output.name}.part")


def before_first_lock(patch: pytest.MonkeyPatch, action: Callable[[], None]) -> None:
    """Run `action` between a run's opening and locking of its part file."""
    original = own_files.fcntl.flock

    def interrupted(descriptor: int, how: int) -> None:
        patch.setattr(own_files.fcntl, "flock", original)
        action()
        original(descriptor, how)

    patch.setattr(own_files.fcntl, "flock", interrupted)


def test_a_run_that_loses_the_race_leaves_the_finished_file_intact(
    user_job: QuantizeGgufJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both runs open the same part file; one finishes before the other one locks it."""
    finished: list[QuantizeGgufResult] = []
    before_first_lock(monkeypatch, lambda: finished.append(run(user_job)[0]))
    late, messages = run(user_job)
    assert late.reused and "Nothing to do" in messages[-1]
    assert sha256_of(user_job.output) == finished[0].sha256 == late.sha256
    assert not part_of(user_job).exists()


def test_a_late_run_of_another_model_starts_its_own_file(
    user_job: QuantizeGgufJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is stopped after preparing its part file; the finished file is untouched."""
    finished: list[QuantizeGgufResult] = []
    before_first_lock(monkeypatch, lambda: finished.append(run(user_job)[0]))
    write_layers = engine.write_layers

    def second_stops(*arguments: Any) -> int:
        monkeypatch.setattr(engine, "write_layers", stop)
        return write_layers(*arguments)

    def stop(*_: Any) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(engine, "write_layers", second_stops)
    late = user_job.model_copy(
        update={"source_identity": "another model", "overwrite": True, "record": False}
    )
    with pytest.raises(KeyboardInterrupt):
        run(late)
    assert sha256_of(user_job.output) == finished[0].sha256
    assert part_of(user_job).exists()


def test_a_part_file_that_was_replaced_is_not_published(
    user_job: QuantizeGgufJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is removed while being written, and another run starts a new one."""
    validate = engine._validate

    def replaced(*arguments: Any) -> Any:
        answer = validate(*arguments)
        part_of(user_job).unlink()
        part_of(user_job).write_bytes(b"another run's unfinished file")
        return answer

    monkeypatch.setattr(engine, "_validate", replaced)
    with pytest.raises(ResourceError, match="was removed or replaced"):
        run(user_job)
    assert not user_job.output.exists()
    assert part_of(user_job).read_bytes() == b"another run's unfinished file"


def test_the_journal_of_a_later_run_is_kept(tmp_path: Path) -> None:
    ours, theirs = Journal(tmp_path / "journal"), Journal(tmp_path / "journal")
    ours.start({"source": "a"}, ["1"])
    theirs.start({"source": "b"}, [])
    ours.remove()
    theirs.append("2")
    assert Journal(tmp_path / "journal").read() == ({"source": "b"}, ["2"])
    theirs.remove()
    assert not (tmp_path / "journal").exists()


@pytest.mark.parametrize("how", ["link", "hard link", "pipe", "folder"])
@pytest.mark.parametrize("suffix", [".part", ".part.journal", ".job.json"])
def test_nothing_is_followed(
    user_job: QuantizeGgufJob, tmp_path: Path, how: str, suffix: str
) -> None:
    victim = tmp_path / "victim"
    victim.write_text("not ours")
    name = user_job.output.with_name(user_job.output.name + suffix)
    if how == "link":
        name.symlink_to(victim)
    elif how == "hard link":
        name.hardlink_to(victim)
    elif how == "pipe":
        os.mkfifo(name)
    else:
        name.mkdir()
    try:
        done = run(user_job)[0].sha256 == sha256_of(user_job.output)
    except (QuantAssetsError, IsADirectoryError):
        done = False
    assert done == (suffix != ".part" and how != "folder"), "the name is replaced, or the run fails"
    assert user_job.output.exists() == done
    assert victim.read_text() == "not ours"


def test_a_link_at_the_output_is_replaced_as_a_name(
    user_job: QuantizeGgufJob, tmp_path: Path
) -> None:
    victim = tmp_path / "victim.gguf"
    victim.write_text("not ours")
    user_job.output.symlink_to(victim)
    assert run(user_job)[0].sha256 == sha256_of(user_job.output)
    assert not user_job.output.is_symlink()
    assert victim.read_text() == "not ours"


def test_the_same_job_again_does_nothing(user_job: QuantizeGgufJob) -> None:
    first, _ = run(user_job)
    before = user_job.output.stat()
    again, messages = run(user_job)
    assert again == first.model_copy(update={"reused": True})
    assert messages == ["Nothing to do: this job has finished, and its output is unchanged."]
    after = user_job.output.stat()
    assert (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns)
    assert {path.name for path in user_job.output.parent.iterdir()} == {
        user_job.output.name,
        record_path(user_job.output).name,
    }


def assert_refused_then_overwritten(job: QuantizeGgufJob, *parts: str) -> None:
    """The file is replaced only with `overwrite`; the error without it says why."""
    before = job.output.read_bytes()
    with pytest.raises(ConfirmationRequired) as refusal:
        run(job)
    assert refusal.value.exit_code == 6
    assert "--overwrite" in refusal.value.next_step
    for part in parts:
        assert part in refusal.value.what + refusal.value.why
    assert job.output.read_bytes() == before
    assert not part_of(job).exists()
    made, _ = run(job.model_copy(update={"overwrite": True}))
    assert made.sha256 == sha256_of(job.output) and not made.reused
    assert run(job)[0].reused


def test_another_models_file_is_not_replaced_without_consent(
    user_job: QuantizeGgufJob, tmp_path: Path
) -> None:
    run(user_job)
    copy = tmp_path / "other" / user_job.source.name
    copy.parent.mkdir()
    copy.symlink_to(user_job.source)
    other = user_job.model_copy(update={"source": copy, "source_identity": "another model"})
    assert_refused_then_overwritten(other, str(user_job.source), str(copy), "another model")


def test_an_unknown_file_is_not_replaced_without_consent(user_job: QuantizeGgufJob) -> None:
    user_job.output.write_bytes(b"GGUF of another tool")
    assert_refused_then_overwritten(user_job, str(user_job.source), "no readable record")


def test_a_changed_file_is_not_replaced_without_consent(user_job: QuantizeGgufJob) -> None:
    run(user_job)
    with user_job.output.open("r+b") as stream:
        stream.truncate(100_000)
    assert_refused_then_overwritten(user_job, "was changed")


@pytest.mark.parametrize("record", [b"", b"[]", b"\xff", b"{" * 10_000, b'{"identity": 1e999}'])
def test_a_damaged_record_counts_as_missing(user_job: QuantizeGgufJob, record: bytes) -> None:
    run(user_job)
    record_path(user_job.output).write_bytes(record)
    with pytest.raises(ConfirmationRequired, match="no readable record"):
        run(user_job)


def test_a_file_of_the_same_model_by_other_versions_is_rebuilt(
    user_job: QuantizeGgufJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(user_job)
    monkeypatch.setattr(finished, "library_versions", lambda _: {"llama-cpp-python": "99"})
    made, messages = run(user_job)
    assert not made.reused
    assert any("Rewriting" in line and "llama cpp python was" in line for line in messages)


def test_an_importance_matrix_is_as_careful(
    larger_bf16: Path, calibration: Path, tmp_path: Path
) -> None:
    job = ImatrixJob(
        source=larger_bf16,
        source_kind="gguf",
        source_identity="the larger model",
        calibration=calibration,
        calibration_name="text",
        output=tmp_path / "larger.imatrix.gguf",
        threads=1,
        chunk_tokens=32,
        max_chunks=1,
        record=True,
        overwrite=False,
    )
    channel = EventChannel(io.StringIO())
    first = imatrix.compute_imatrix(job, channel)
    made = job.output.stat().st_mtime_ns
    assert imatrix.compute_imatrix(job, channel) == first
    assert job.output.stat().st_mtime_ns == made
    other = job.model_copy(update={"source_identity": "another model"})
    with pytest.raises(ConfirmationRequired, match="made from another model"):
        imatrix.compute_imatrix(other, channel)
    victim = tmp_path / "victim"
    victim.write_text("not ours")
    job.output.with_name(f"{job.output.name}.part").symlink_to(victim)
    with pytest.raises(ResourceError, match="is a link"):
        imatrix.compute_imatrix(job, channel)
    assert victim.read_text() == "not ours"
    assert sha256_of(job.output) == first.sha256


@pytest.mark.parametrize(
    ("place", "name"),
    [(engine, "settle_record"), (engine, "replace_durably"), (Journal, "remove")],
)
@pytest.mark.parametrize("when", ["before", "after"])
def test_no_moment_at_the_end_leaves_a_file_without_record(
    user_job: QuantizeGgufJob, monkeypatch: pytest.MonkeyPatch, place: Any, name: str, when: str
) -> None:
    """Stopped before or after each publication step, the same job still completes."""
    original = getattr(place, name)

    def stopped(*arguments: Any) -> None:
        if when == "after":
            original(*arguments)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(place, name, stopped)
        with pytest.raises(KeyboardInterrupt):
            run(user_job)
    again, _ = run(user_job)
    published = name == "remove" or (name == "replace_durably" and when == "after")
    assert again.reused == published
    assert again.reused or again.resumed_from_layer == again.n_layers, "no work is repeated"
    assert sha256_of(user_job.output) == again.sha256
    assert {path.name for path in user_job.output.parent.iterdir()} == {
        user_job.output.name,
        record_path(user_job.output).name,
    }


def test_a_finished_but_uncommitted_artifact_is_not_rebuilt(
    larger_bf16: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process ends between renaming the file and writing its manifest."""
    store = ArtifactStore(tmp_path)
    source = SourceModel(
        name="larger", kind="gguf", path=larger_bf16, identity="abc", provenance="made here"
    )
    messages: list[str] = []

    def make() -> GgufArtifact:
        return make_gguf_artifact(
            "larger", source, "Q8_0", store, threads=1, session=WorkerSession(listen)
        )

    def listen(event: Event) -> None:
        if isinstance(event, LogEvent):
            messages.append(event.message)

    def killed(*_: Any) -> Path:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(ArtifactStore, "commit", killed)
        with pytest.raises(KeyboardInterrupt):
            make()
    assert store.all() == [] and messages == []
    made = make()
    assert messages == ["Nothing to do: this job has finished, and its output is unchanged."]
    assert store.find(made.manifest.job_id, verify_content=True) == made.manifest
    assert sorted(path.name for path in made.folder.iterdir()) == [
        "larger-Q8_0.gguf", "manifest.json",
    ]  # fmt: skip
