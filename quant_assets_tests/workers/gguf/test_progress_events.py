"""Progress and memory of a real quantization, in its events, its output and its record."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from quant_assets.artifacts.output_record import read_record
from quant_assets.processes.protocol import Event, MemoryEvent, ProgressEvent
from quant_assets.processes.session import WorkerSession
from quant_assets.quantize.gguf.job import QuantizeGgufJob, QuantizeGgufResult, quantize_gguf

STEPS = ["check", "plan", "quantize", "validate"]


@pytest.fixture(scope="module")
def quantized(
    models: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> tuple[QuantizeGgufResult, list[Event]]:
    events: list[Event] = []
    result = quantize_gguf(
        QuantizeGgufJob(
            source=models["llama"], source_kind="hf", source_identity="tiny", level="Q8_0",
            output=tmp_path_factory.mktemp("out") / "tiny-Q8_0.gguf", threads=1, record=True,
        ),
        session=WorkerSession(events.append),
    )  # fmt: skip
    return result, events


def test_every_step_has_its_number_and_reaches_100_percent(
    quantized: tuple[QuantizeGgufResult, list[Event]],
) -> None:
    progress = [event for event in quantized[1] if isinstance(event, ProgressEvent)]
    assert list(dict.fromkeys(event.step for event in progress)) == STEPS
    for number, step in enumerate(STEPS, start=1):
        own = [event for event in progress if event.step == step]
        assert {(event.step_number, event.n_steps) for event in own} == {(number, len(STEPS))}
        percentages = [event.done / event.total for event in own]
        assert percentages == sorted(percentages)
        assert percentages[-1] == 1
    fractions = [event.job_fraction for event in progress]
    assert None not in fractions and fractions == sorted(fractions, key=lambda item: item or 0)
    assert fractions[-1] == 1


def test_memory_is_reported_during_the_run_and_after_it(
    quantized: tuple[QuantizeGgufResult, list[Event]],
) -> None:
    result, events = quantized
    memory = [event for event in events if isinstance(event, MemoryEvent)]
    assert memory
    for event in memory:
        assert 0 < event.rss_bytes <= event.peak_rss_bytes
        assert event.own_bytes is not None and event.peak_own_bytes is not None
        assert 0 < event.own_bytes <= event.peak_own_bytes
        assert event.own_bytes < event.rss_bytes  # the interpreter itself is a mapped file
        assert event.vram_bytes is None
    assert 0 < (result.peak_own_bytes or 0) <= result.peak_rss_bytes
    assert result.peak_rss_bytes <= memory[-1].peak_rss_bytes
    assert result.peak_vram_bytes is None


def test_the_record_of_the_file_holds_the_final_state_of_its_job(
    quantized: tuple[QuantizeGgufResult, list[Event]],
) -> None:
    record = read_record(quantized[0].output)
    assert record is not None
    job = record.result["quantization_job"]
    assert (job["status"], job["progress_percentage"]) == ("completed", 100)
    assert job["start_time"] < job["estimated_completion"]
    assert job["memory_usage"]["peak_rss_bytes"] == record.result["peak_rss_bytes"]


def test_the_command_shows_progress_without_a_terminal_and_memory_in_its_result(
    models: dict[str, Path], tmp_path: Path
) -> None:
    done = subprocess.run(
        [
            sys.executable, "-m", "quant_assets.cli.app", "quantize", str(models["llama"]),
            "--level", "Q8_0", "--output-dir", str(tmp_path), "--threads", "1", "--format", "json",
        ],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    for number, step in enumerate(STEPS, start=1):
        assert f"[{number} of {len(STEPS)}] {step}: done in" in done.stderr
    assert "GB peak" in done.stderr
    result = json.loads(done.stdout)
    assert result["peak_rss_bytes"] >= result["peak_own_bytes"] > 0
    assert result["peak_vram_bytes"] is None
    job = result["quantization_job"]
    assert (job["status"], job["progress_percentage"]) == ("completed", 100)
    assert job["memory_usage"]["peak_rss_bytes"] > 0
