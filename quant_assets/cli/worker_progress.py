"""A worker's events on standard error: step, percentage, time left, memory and log."""

import time
from dataclasses import dataclass
from types import TracebackType

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    TaskID,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
)

from quant_assets.cli.output import LiteralConsole
from quant_assets.cli.verbosity import Verbosity
from quant_assets.escaping import terminal_line, terminal_text
from quant_assets.models.source import SourceModel, resolve_source
from quant_assets.processes.job_tracker import JobTracker, StepProgress, duration_text
from quant_assets.processes.protocol import Event, LogEvent, MemoryEvent
from quant_assets.processes.quantization_job import QuantizationJob
from quant_assets.processes.session import WorkerSession
from quant_assets.settings import Settings

_LINE_INTERVAL_S = 10.0


class WorkerProgress:
    """Shows a worker's events while the block runs; `show` is the session's event handler.

    On a terminal each step has a bar; elsewhere it prints a line every 10 s and one per finished
    step. Both say the step, its percentage, the time left, and the worker's memory, current and
    peak, in GB (10^9 bytes). `job` is the state of the whole job, final after the block.
    """

    def __init__(self, verbosity: Verbosity, console: Console | None = None) -> None:
        self._verbosity = verbosity
        self._console = console or LiteralConsole(stderr=True)
        self._tracker = JobTracker()
        self._shown: dict[str, _ShownStep] = {}
        self._bars: Progress | None = None
        if self._console.is_terminal and verbosity is not Verbosity.QUIET:
            self._bars = Progress(
                TextColumn("{task.description}", markup=False),
                BarColumn(),
                TaskProgressColumn(),
                TimeElapsedColumn(),
                TextColumn("{task.fields[left]}", markup=False),
                TextColumn("{task.fields[memory]}", markup=False),
                console=self._console,
            )

    def __enter__(self) -> "WorkerProgress":
        if self._bars is not None:
            self._bars.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        job = self._tracker.end("completed" if error is None else "failed")
        if self._bars is not None:
            self._bars.stop()
        if job.memory_usage is not None and self._verbosity is not Verbosity.QUIET:
            ended = job.estimated_completion or job.start_time
            seconds = (ended - job.start_time).total_seconds()
            self._print(f"{job.status} in {duration_text(seconds)}; {job.memory_usage.peaks_text}")

    @property
    def job(self) -> QuantizationJob:
        """The job's state: progress, expected end and memory."""
        return self._tracker.job

    def show(self, event: Event) -> None:
        """Show one event as the verbosity demands."""
        step = self._tracker.observe(event)
        if self._verbosity is Verbosity.QUIET:
            return
        if self._verbosity is Verbosity.DEBUG:
            self._print(event.model_dump_json())
        if step is not None:
            self._show_step(step)
        elif isinstance(event, MemoryEvent):
            self._show_memory()
        elif isinstance(event, LogEvent):
            self._show_log(event)

    def _show_step(self, step: StepProgress) -> None:
        event = step.event
        shown = self._shown.get(event.step)
        if shown is None or shown.step is not step:
            shown = self._begun(step, earlier=shown)
        finished_now = step.finished and not shown.finished
        shown.finished = step.finished
        if self._bars is not None and shown.bar is not None:
            self._bars.update(
                shown.bar,
                completed=event.done,
                total=event.total,
                left="" if step.finished else step.time_left,
                memory=self._memory_text(),
            )
        elif finished_now:
            self._print(
                f"{step.name}: done in {duration_text(step.elapsed_s)}{self._tracker.memory_suffix}"
            )
        elif time.monotonic() - shown.printed >= _LINE_INTERVAL_S:
            shown.printed = time.monotonic()
            self._print(self._tracker.line(step))
        if finished_now and self._verbosity is Verbosity.VERBOSE:
            self._print(f"{step.name}: {event.total:,.0f} {event.unit} in {step.elapsed_s:.1f} s")

    def _begun(self, step: StepProgress, *, earlier: "_ShownStep | None") -> "_ShownStep":
        event = step.event
        bar = earlier.bar if earlier is not None else None
        if self._bars is None:
            self._print(f"{step.name} ...")
        elif bar is not None:
            self._bars.reset(bar, total=event.total)
        else:
            bar = self._bars.add_task(
                terminal_line(step.name), total=event.total, left="", memory=self._memory_text()
            )
        shown = self._shown[event.step] = _ShownStep(step, bar, time.monotonic())
        return shown

    def _show_memory(self) -> None:
        if self._bars is not None:
            for shown in self._shown.values():
                if shown.bar is not None and not shown.finished:
                    self._bars.update(shown.bar, memory=self._memory_text())

    def _show_log(self, event: LogEvent) -> None:
        if event.level == "debug" and self._verbosity is not Verbosity.DEBUG:
            return
        prefix = "warning: " if event.level == "warning" else ""
        self._print(f"{prefix}{event.message}")

    def _memory_text(self) -> str:
        memory = self._tracker.memory
        return "" if memory is None else memory.text

    def _print(self, text: str) -> None:
        self._console.print(terminal_text(text), markup=False, emoji=False, soft_wrap=True)


@dataclass
class _ShownStep:
    """A step, its bar, and when its last line was printed."""

    step: StepProgress
    bar: TaskID | None
    printed: float
    finished: bool = False


def fetched_source(model: str, settings: Settings, verbosity: Verbosity) -> SourceModel:
    """The model that `model` names; a download from the hub shows its progress in bytes."""
    with WorkerProgress(verbosity) as progress:
        return resolve_source(model, settings, session=WorkerSession(progress.show))
