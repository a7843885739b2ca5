"""Follows a job's events: its state, and how much time is left by the pace measured so far.

Speed and remaining time are rich's estimates, over all of this run's recent updates. Workers do not
import this module; not every worker environment has rich.
"""

import datetime
import time
from collections.abc import Callable
from typing import Final, Literal

from rich.console import Console
from rich.progress import Progress

from quant_assets.processes.memory import MemoryUsage
from quant_assets.processes.protocol import Event, MemoryEvent, ProgressEvent
from quant_assets.processes.quantization_job import QuantizationJob

ESTIMATING: Final = "estimating the time left"
_SPEED_PERIOD_S: Final = 24 * 3600.0
"""Layers of a large model and cells of a matrix take many minutes; rich keeps 1000 updates at most."""
_ANCHOR: Final = 1.0
"""rich measures speed from the first update that adds something: this one, made at the start."""
_SECONDS_PER_MINUTE: Final = 60
_MINUTES_PER_HOUR: Final = 60

Clock = Callable[[], float]


class TimeLeft:
    """Time left of an amount of work, of which `done` was there at the start."""

    def __init__(self, done: float, total: float, clock: Clock) -> None:
        self._first = done
        self._progress = Progress(
            console=Console(quiet=True),
            auto_refresh=False,
            speed_estimate_period=_SPEED_PERIOD_S,
            get_time=clock,
        )
        self._task = self._progress.add_task("", total=self._shifted(total))
        self._progress.update(self._task, completed=_ANCHOR)

    def update(self, done: float, total: float) -> None:
        """Note that `done` of `total` are finished now."""
        self._progress.update(self._task, completed=self._shifted(done), total=self._shifted(total))

    def seconds(self) -> float | None:
        """Seconds left, 0 when finished; None until there is a pace to estimate from."""
        left = self._progress.tasks[0].time_remaining
        return None if left is None else max(0.0, left)

    def _shifted(self, amount: float) -> float:
        return amount - self._first + _ANCHOR


class StepProgress:
    """A step that is running or has finished."""

    def __init__(self, event: ProgressEvent, clock: Clock) -> None:
        self.event = event
        self._clock = clock
        self._started = clock()
        self._time_left = TimeLeft(event.done, event.total, clock)

    def update(self, event: ProgressEvent) -> None:
        """Note the step's newest event."""
        self.event = event
        self._time_left.update(event.done, event.total)

    @property
    def finished(self) -> bool:
        """Whether all of its work is done."""
        return self.event.done >= self.event.total

    @property
    def elapsed_s(self) -> float:
        """Seconds since its first event."""
        return self._clock() - self._started

    @property
    def percentage(self) -> float:
        """Percentage of its work that is done."""
        event = self.event
        return min(100.0, 100 * event.done / event.total) if event.total else 100.0

    @property
    def name(self) -> str:
        """The step's name, with its number where the job has declared its steps."""
        event = self.event
        if event.step_number is None:
            return event.step
        return f"[{event.step_number} of {event.n_steps}] {event.step}"

    @property
    def time_left(self) -> str:
        """The time left in words; work of an earlier run does not count."""
        return time_left_text(self._time_left.seconds())


class JobTracker:
    """Keeps a job's steps and its `QuantizationJob` up to date from its events."""

    def __init__(self, clock: Clock = lambda: time.monotonic()) -> None:
        self._clock = clock
        self._job = QuantizationJob(status="pending", start_time=_now())
        self._steps: dict[str, StepProgress] = {}
        self._job_left: TimeLeft | None = None

    @property
    def job(self) -> QuantizationJob:
        """The job's state after the last event."""
        return self._job

    @property
    def memory(self) -> MemoryUsage | None:
        """Memory of the worker that has last reported, with the largest peaks of all workers."""
        return self._job.memory_usage

    def observe(self, event: Event) -> StepProgress | None:
        """Note an event; returns the step that it reports, if any."""
        if isinstance(event, MemoryEvent):
            self._update(memory_usage=_with_earlier_peaks(event, self.memory))
        if not isinstance(event, ProgressEvent):
            return None
        step = self._steps.get(event.step)
        new = step is None or event.done < step.event.done
        if step is None or new:
            step = self._steps[event.step] = StepProgress(event, self._clock)
        else:
            step.update(event)
        percentage = self._percentage(event, resumed=new and event.done > 0)
        left_s = None if self._job_left is None else self._job_left.seconds()
        self._update(
            status="running",
            step=event.step,
            step_number=event.step_number,
            n_steps=event.n_steps,
            progress_percentage=max(self._job.progress_percentage, percentage),
            estimated_completion=None
            if left_s is None
            else _now() + datetime.timedelta(seconds=left_s),
        )
        return step

    def end(self, status: Literal["completed", "failed"]) -> QuantizationJob:
        """Note that the job has ended; returns its final state."""
        if status == "completed":
            self._update(progress_percentage=100.0)
        self._update(status=status, estimated_completion=_now())
        return self._job

    def line(self, step: StepProgress) -> str:
        """All facts in one line: step, percentage, time left, the whole job, memory."""
        event = step.event
        parts = [
            f"{step.name}: {step.percentage:.0f}% ({event.done:,.0f} of {event.total:,.0f} "
            f"{event.unit}), {step.time_left}"
        ]
        if self._job_left is not None:
            left = time_left_text(self._job_left.seconds())
            parts.append(f"whole job {self._job.progress_percentage:.0f}%, {left}")
        return "; ".join(parts) + self.memory_suffix

    @property
    def memory_suffix(self) -> str:
        """The memory as the end of a line; empty before the first measurement."""
        return f", memory {self.memory.text}" if self.memory is not None else ""

    def _percentage(self, event: ProgressEvent, *, resumed: bool) -> float:
        if event.job_fraction is None:
            return 0.0
        if self._job_left is None or resumed:
            # An earlier run's work says nothing about this run's pace.
            self._job_left = TimeLeft(event.job_fraction, 1.0, self._clock)
        else:
            self._job_left.update(event.job_fraction, 1.0)
        return 100 * event.job_fraction

    def _update(self, **changes: object) -> None:
        self._job = self._job.model_copy(update=changes)


def _with_earlier_peaks(now: MemoryEvent, earlier: MemoryUsage | None) -> MemoryUsage:
    usage = now.model_dump(exclude={"event"})
    if earlier is not None:
        for name in ("peak_rss_bytes", "peak_own_bytes", "peak_vram_bytes"):
            peaks = [peak for peak in (usage[name], getattr(earlier, name)) if peak is not None]
            usage[name] = max(peaks, default=None)
    return MemoryUsage.model_validate(usage)


def time_left_text(seconds: float | None) -> str:
    """Seconds left in words; without an estimate it says so."""
    return ESTIMATING if seconds is None else f"{duration_text(seconds)} left"


def duration_text(seconds: float) -> str:
    """Seconds, from a minute on minutes, from an hour on hours."""
    if seconds < _SECONDS_PER_MINUTE:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), _SECONDS_PER_MINUTE)
    if minutes < _MINUTES_PER_HOUR:
        return f"{minutes} min {rest} s"
    hours, minutes = divmod(minutes, _MINUTES_PER_HOUR)
    return f"{hours} h {minutes} min"


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)
