"""A worker's events on standard error: step, percentage, time left, memory and log."""

import time
from enum import StrEnum
from types import TracebackType
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    TaskID,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from quant_assets.cli.output import LiteralConsole
from quant_assets.escaping import terminal_line, terminal_text
from quant_assets.processes.protocol import Event, LogEvent, MemoryEvent, ProgressEvent

_LINE_INTERVAL_S = 10.0
_SECONDS_PER_MINUTE = 60


class Verbosity(StrEnum):
    """How much to show: nothing; steps and messages; also the exact times of steps; every event."""

    QUIET = "quiet"
    NORMAL = "normal"
    VERBOSE = "verbose"
    DEBUG = "debug"


VerbosityOption = Annotated[Verbosity, typer.Option(help="How much to show on standard error.")]


def print_warning(text: str | None, verbosity: Verbosity) -> None:
    """Print a warning on standard error, if there is one and output is not quiet."""
    if text and verbosity is not Verbosity.QUIET:
        LiteralConsole(stderr=True).print(f"warning: {text}")


class WorkerProgress:
    """Shows a worker's events while the block runs; `show` is the session's event handler.

    On a terminal each step has a bar; elsewhere it prints a line every 10 s and one per finished
    step. Memory is the worker's resident memory, current and peak, in GB (10^9 bytes).
    """

    def __init__(self, verbosity: Verbosity, console: Console | None = None) -> None:
        self._verbosity = verbosity
        self._console = console or LiteralConsole(stderr=True)
        self._memory = ""
        self._steps: dict[str, _Step] = {}
        self._bars: Progress | None = None
        if self._console.is_terminal and verbosity is not Verbosity.QUIET:
            self._bars = Progress(
                TextColumn("{task.description}", markup=False),
                BarColumn(),
                TaskProgressColumn(),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
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
        if self._bars is not None:
            self._bars.stop()

    def show(self, event: Event) -> None:
        """Show one event as the verbosity demands."""
        if self._verbosity is Verbosity.QUIET:
            return
        if self._verbosity is Verbosity.DEBUG:
            self._print(event.model_dump_json())
        if isinstance(event, ProgressEvent):
            self._show_progress(event)
        elif isinstance(event, MemoryEvent):
            self._show_memory(event)
        elif isinstance(event, LogEvent):
            self._show_log(event)

    def _show_progress(self, event: ProgressEvent) -> None:
        step = self._steps.get(event.step)
        if step is None or event.done < step.done:
            step = self._steps[event.step] = _Step(event, self._new_bar(event))
            if self._bars is None:
                self._print(f"{event.step} ...")
        finished_before = step.done >= event.total
        step.done = event.done
        finished = event.done >= event.total
        if self._bars is not None and step.bar is not None:
            self._bars.update(
                step.bar, completed=event.done, total=event.total, memory=self._memory
            )
        elif finished and not finished_before:
            self._print(f"{event.step}: done in {_duration(step.elapsed)}{self._memory_suffix()}")
        elif time.monotonic() - step.printed >= _LINE_INTERVAL_S:
            step.printed = time.monotonic()
            percent = 100 * event.done / event.total if event.total else 0
            self._print(
                f"{event.step}: {percent:.0f}% ({event.done:,.0f} of {event.total:,.0f} "
                f"{event.unit}), {step.time_left(event)}{self._memory_suffix()}"
            )
        if finished and not finished_before and self._verbosity is Verbosity.VERBOSE:
            self._print(f"{event.step}: {event.total:,.0f} {event.unit} in {step.elapsed:.1f} s")

    def _new_bar(self, event: ProgressEvent) -> TaskID | None:
        if self._bars is None:
            return None
        return self._bars.add_task(
            terminal_line(event.step), total=event.total, memory=self._memory
        )

    def _show_memory(self, event: MemoryEvent) -> None:
        self._memory = (
            f"{event.rss_bytes / 1e9:.2f} GB now, {event.peak_rss_bytes / 1e9:.2f} GB peak"
        )
        if self._bars is not None:
            for step in self._steps.values():
                if step.bar is not None:
                    self._bars.update(step.bar, memory=self._memory)

    def _show_log(self, event: LogEvent) -> None:
        if event.level == "debug" and self._verbosity is not Verbosity.DEBUG:
            return
        prefix = "warning: " if event.level == "warning" else ""
        self._print(f"{prefix}{event.message}")

    def _memory_suffix(self) -> str:
        return f", memory {self._memory}" if self._memory else ""

    def _print(self, text: str) -> None:
        self._console.print(terminal_text(text), markup=False, emoji=False, soft_wrap=True)


class _Step:
    """A step in progress or finished."""

    def __init__(self, event: ProgressEvent, bar: TaskID | None) -> None:
        self.bar = bar
        self.done = event.done
        self._first_done = event.done
        self._started = self.printed = time.monotonic()

    @property
    def elapsed(self) -> float:
        return time.monotonic() - self._started

    def time_left(self, event: ProgressEvent) -> str:
        """The time left at this run's pace; work of an earlier run does not count."""
        made = event.done - self._first_done
        if made <= 0:
            return "time left unknown"
        return f"{_duration(self.elapsed * (event.total - event.done) / made)} left"


def _duration(seconds: float) -> str:
    if seconds < _SECONDS_PER_MINUTE:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), _SECONDS_PER_MINUTE)
    return f"{minutes} min {rest} s"
