"""The state of a job, kept up to date from its events."""

import datetime
from collections.abc import Iterator

import pytest

from quant_assets.processes.job_tracker import ESTIMATING, JobTracker, TimeLeft, duration_text
from quant_assets.processes.protocol import Event, MemoryEvent, ProgressEvent
from quant_assets.processes.session import WorkerSession


class Clock:
    """Seconds that pass when the test says so."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Iterator[Clock]:
    return Clock()


def event(done: float, fraction: float | None = None, step: str = "quantize") -> ProgressEvent:
    return ProgressEvent(
        step=step, done=done, total=10, unit="layers", step_number=2, n_steps=3,
        job_fraction=fraction,
    )  # fmt: skip


def test_there_is_no_time_left_before_a_pace_was_measured(clock: Clock) -> None:
    tracker = JobTracker(clock)
    step = tracker.observe(event(0, 0.1))
    assert step is not None and step.time_left == ESTIMATING
    assert tracker.job.estimated_completion is None
    assert ESTIMATING in tracker.line(step)


def test_time_left_follows_the_pace_and_is_never_negative(clock: Clock) -> None:
    left = TimeLeft(0, 10, clock)
    expected = {1: 90, 2: 80, 5: 50, 10: 0, 12: 0}
    for done, seconds in expected.items():
        clock.now = 100.0 + 10 * done
        left.update(done, 10)
        assert left.seconds() == seconds
    left.update(12, 10)
    assert left.seconds() == 0


def test_slow_steps_have_an_estimate_too(clock: Clock) -> None:
    left = TimeLeft(0, 4, clock)
    for done in (1, 2):
        clock.now += 3600
        left.update(done, 4)
    assert left.seconds() == 2 * 3600


def test_the_percentage_of_the_job_never_decreases(clock: Clock) -> None:
    tracker = JobTracker(clock)
    seen = []
    for done, fraction in ((0, 0.1), (5, 0.5), (2, 0.2), (10, 0.9)):
        clock.now += 1
        tracker.observe(event(done, fraction))
        seen.append(tracker.job.progress_percentage)
    assert seen == [10, 50, 50, 90]
    assert tracker.end("completed").progress_percentage == 100


def test_work_of_an_earlier_run_says_nothing_about_the_pace(clock: Clock) -> None:
    tracker = JobTracker(clock)
    tracker.observe(event(10, 0.1, step="plan"))
    clock.now += 1
    tracker.observe(event(5, 0.55))  # resumed after half of the layers
    assert tracker.job.estimated_completion is None
    clock.now += 60
    before = datetime.datetime.now(datetime.UTC)
    tracker.observe(event(6, 0.64))
    completion = tracker.job.estimated_completion
    after = datetime.datetime.now(datetime.UTC)
    assert completion is not None
    # 0.09 of the job took a minute, and 0.36 are left
    assert before + datetime.timedelta(seconds=235) < completion
    assert completion < after + datetime.timedelta(seconds=250)


def test_memory_and_step_are_part_of_the_job_and_of_its_line(clock: Clock) -> None:
    tracker = JobTracker(clock)
    tracker.observe(
        MemoryEvent(
            rss_bytes=2_000_000_000, peak_rss_bytes=3_000_000_000, own_bytes=1_000_000_000,
            peak_own_bytes=1_500_000_000, vram_bytes=4_000_000_000, peak_vram_bytes=5_000_000_000,
        )
    )  # fmt: skip
    step = tracker.observe(event(4, 0.4))
    assert step is not None
    line = tracker.line(step)
    assert line.startswith("[2 of 3] quantize: 40% (4 of 10 layers), ")
    assert "whole job 40%" in line
    for fact in ("2.00 GB now, 3.00 GB peak", "own 1.00 GB now", "GPU 4.00 GB now, 5.00 GB peak"):
        assert fact in line
    job = tracker.job
    assert (job.status, job.step, job.step_number, job.n_steps) == ("running", "quantize", 2, 3)
    assert job.memory_usage is not None and job.memory_usage.peak_own_bytes == 1_500_000_000
    failed = tracker.end("failed")
    assert failed.status == "failed" and failed.progress_percentage == 40


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0 s"), (59, "59 s"), (61, "1 min 1 s"), (7260, "2 h 1 min")]
)
def test_durations(seconds: float, text: str) -> None:
    assert duration_text(seconds) == text


def test_a_worker_of_several_fills_its_part_of_the_job() -> None:
    events: list[Event] = []
    session = WorkerSession(events.append)
    first, last = session.part(0, 0.4), session.part(0.4, 1)
    for part in (first, last):
        assert part.on_event is not None
        for fraction in (0, 0.5, 1):
            part.on_event(event(0, fraction))
    fractions = [seen.job_fraction for seen in events if isinstance(seen, ProgressEvent)]
    assert fractions == pytest.approx([0, 0.2, 0.4, 0.4, 0.7, 1])
    assert last.on_event is not None
    last.on_event(event(0))  # a step that its worker did not declare
    assert isinstance(events[-1], ProgressEvent) and events[-1].job_fraction is None


def test_the_job_keeps_the_largest_peak_of_its_workers(clock: Clock) -> None:
    tracker = JobTracker(clock)
    for now, peak in ((5, 8), (2, 3)):
        tracker.observe(MemoryEvent(rss_bytes=now, peak_rss_bytes=peak))
    memory = tracker.job.memory_usage
    assert memory is not None
    assert (memory.rss_bytes, memory.peak_rss_bytes, memory.peak_own_bytes) == (2, 8, None)
