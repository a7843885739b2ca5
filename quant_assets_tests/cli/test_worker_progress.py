"""Worker events as they are shown to the user."""

import io
from itertools import count

import pytest
from rich.console import Console

from quant_assets.cli.verbosity import Verbosity
from quant_assets.cli.worker_progress import WorkerProgress
from quant_assets.processes.protocol import Event, LogEvent, MemoryEvent, ProgressEvent


def shown(verbosity: Verbosity, events: list[Event], *, terminal: bool = False) -> str:
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=terminal, width=200)
    with WorkerProgress(verbosity, console) as progress:
        for event in events:
            progress.show(event)
    return stream.getvalue()


def step(done: float) -> ProgressEvent:
    return ProgressEvent(step="quantize", done=done, total=200, unit="M parameters")


MEMORY = MemoryEvent(rss_bytes=1_500_000_000, peak_rss_bytes=2_250_000_000)


def test_percent_time_left_and_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = count(step=20)  # each reading of the clock is 20 s after the last
    monkeypatch.setattr("time.monotonic", lambda: float(next(clock)))
    text = shown(Verbosity.NORMAL, [step(50), MEMORY, step(100), step(200)])
    assert "quantize: 50% (100 of 200 M parameters)" in text
    assert "1.50 GB now, 2.25 GB peak" in text
    assert "left" in text
    assert "quantize: done in" in text


def test_time_left_counts_only_the_work_of_this_run(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    stream = io.StringIO()
    with WorkerProgress(Verbosity.NORMAL, Console(file=stream, width=200)) as progress:
        progress.show(step(100))  # an earlier run did the first half
        now = 30.0
        progress.show(step(150))
    assert "75% (150 of 200 M parameters), 30 s left" in stream.getvalue()


def test_messages_by_verbosity() -> None:
    events: list[Event] = [
        LogEvent(level="debug", message="a detail"),
        LogEvent(level="info", message="resuming"),
        LogEvent(level="warning", message="[odd] text"),
    ]
    assert shown(Verbosity.QUIET, events) == ""
    assert shown(Verbosity.NORMAL, events) == "resuming\nwarning: [odd] text\n"
    debug = shown(Verbosity.DEBUG, events)
    assert "a detail\n" in debug
    assert '"event":"log"' in debug


def test_bars_on_a_terminal() -> None:
    text = shown(Verbosity.NORMAL, [step(0), MEMORY, step(200)], terminal=True)
    assert "quantize" in text
    assert "100%" in text
    assert "2.25 GB peak" in text
