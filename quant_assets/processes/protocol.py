"""The protocol between a worker and its parent: one JSON job in, JSON-lines events out.

The worker's side is `serve`; the parent's side is `quant_assets.processes.supervisor`.
"""

import ctypes
import json
import logging
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import IO, TYPE_CHECKING, Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, Field, TypeAdapter

from quant_assets.errors import QuantAssetsError, explained
from quant_assets.redaction import redact, redact_values

if TYPE_CHECKING:
    from dagster_pipes import PipesContext

JobT = TypeVar("JobT", bound=BaseModel)

MEMORY_INTERVAL_S = 1.0
PIPES_PROGRESS_INTERVAL_S = 5.0
_PIPES_CONTEXT_VARIABLE = "DAGSTER_PIPES_CONTEXT"
_PR_SET_PDEATHSIG = 1  # linux/prctl.h


class ProgressEvent(BaseModel):
    """The progress of a step: `done` of `total` units."""

    event: Literal["progress"] = "progress"
    step: str
    done: float
    total: float
    unit: str


class LogEvent(BaseModel):
    """One line for the user."""

    event: Literal["log"] = "log"
    level: Literal["debug", "info", "warning"]
    message: str


class MemoryEvent(BaseModel):
    """Resident memory of the worker in bytes, current and peak."""

    event: Literal["memory"] = "memory"
    rss_bytes: int
    peak_rss_bytes: int


class ResultEvent(BaseModel):
    """The result; the last event."""

    event: Literal["result"] = "result"
    result: dict[str, Any]


class ErrorEvent(BaseModel):
    """The error that ended the job; the last event."""

    event: Literal["error"] = "error"
    error_type: str
    what: str
    why: str
    next_step: str


Event = Annotated[
    ProgressEvent | LogEvent | MemoryEvent | ResultEvent | ErrorEvent, Field(discriminator="event")
]
EVENT_ADAPTER: TypeAdapter[Event] = TypeAdapter(Event)
EventT = TypeVar("EventT", bound=BaseModel)
_PROTOCOL_FIELDS = frozenset({"event", "level", "error_type"})


def redacted(event: EventT) -> EventT:
    """`event` with secrets redacted from its texts."""
    texts = {
        name: redact_values(value)
        for name, value in event
        if name not in _PROTOCOL_FIELDS and isinstance(value, str | dict)
    }
    return event.model_copy(update=texts)


def resident_memory() -> tuple[int, int]:
    """Resident memory of this process in bytes: (now, peak).

    The peak is `VmHWM`, which is reset at exec. `ru_maxrss` is not: on Linux a child inherits the
    value of the parent that started it.
    """
    status = Path("/proc/self/status")
    if status.exists():
        fields = dict(
            line.split(":", 1) for line in status.read_text().splitlines() if line.startswith("Vm")
        )
        return (int(fields["VmRSS"].split()[0]) * 1024, int(fields["VmHWM"].split()[0]) * 1024)
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    peak_bytes = peak if sys.platform == "darwin" else peak * 1024
    return peak_bytes, peak_bytes


class EventChannel:
    """Sends the events of one job to the parent and, under Dagster Pipes, to the run's log."""

    def __init__(self, stream: IO[str], pipes: "PipesContext | None" = None) -> None:
        self._stream = stream
        self._pipes = pipes
        self._lock = threading.Lock()
        self._last_pipes_progress: tuple[str, float] = ("", 0.0)

    def _send(self, event: BaseModel) -> None:
        # Redact before serializing: a secret that looks like a number or a protocol keyword must not
        # break the stream.
        line = redacted(event).model_dump_json()
        with self._lock:
            self._stream.write(line + "\n")
            self._stream.flush()

    def progress(self, step: str, done: float, total: float, unit: str) -> None:
        """Report that `done` of `total` units of `step` are finished."""
        self._send(ProgressEvent(step=step, done=done, total=total, unit=unit))
        if self._pipes is None:
            return
        last_step, last_time = self._last_pipes_progress
        now = time.monotonic()
        if step != last_step or done >= total or now - last_time >= PIPES_PROGRESS_INTERVAL_S:
            self._last_pipes_progress = (step, now)
            self._pipes.log.info(f"{step}: {done:g} of {total:g} {unit}")

    def log(self, message: str, level: Literal["debug", "info", "warning"] = "info") -> None:
        """Send one line for the user."""
        self._send(LogEvent(level=level, message=message))
        if self._pipes is not None:
            self._pipes.log.log(logging.getLevelNamesMapping()[level.upper()], redact(message))

    def memory(self) -> None:
        """Report the resident memory of this process."""
        rss_bytes, peak_rss_bytes = resident_memory()
        self._send(MemoryEvent(rss_bytes=rss_bytes, peak_rss_bytes=peak_rss_bytes))

    def result(self, result: BaseModel) -> None:
        """Send the result."""
        self._send(ResultEvent(result=result.model_dump(mode="json")))

    def error(self, error: QuantAssetsError) -> None:
        """Send the error that ended the job."""
        self._send(
            ErrorEvent(
                error_type=type(error).__name__,
                what=error.what,
                why=error.why,
                next_step=error.next_step,
            )
        )


def _known_error(error: Exception) -> QuantAssetsError:
    """The three-part error for any exception of a job."""
    return explained(error) or QuantAssetsError(
        f"The job failed with {type(error).__name__}.",
        str(error) or "The library gave no reason.",
        "If the input is valid, report this error with the worker's log.",
    )


def _die_with_parent() -> None:
    """Have Linux kill this process when its parent dies, so that no orphan keeps computing."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


@contextmanager
def _reported_memory(channel: EventChannel) -> Iterator[None]:
    """Send a memory event every `MEMORY_INTERVAL_S` while the block runs, and one at the end."""
    stop = threading.Event()

    def send_periodically() -> None:
        while not stop.wait(MEMORY_INTERVAL_S):
            channel.memory()

    reporter = threading.Thread(target=send_periodically, daemon=True)
    reporter.start()
    try:
        yield
    finally:
        stop.set()
        reporter.join()
        channel.memory()


def serve(
    job_type: type[JobT],
    handle: Callable[[JobT, EventChannel], BaseModel],
    *,
    report_memory: bool = True,
) -> None:
    """Run one job in this process and exit: 0 with a result sent, 1 with an error sent.

    Standard output carries only events; output of libraries is redirected to standard error.
    `report_memory=False` is for measurements, which no other thread may disturb.
    """
    _die_with_parent()
    stream = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    with ExitStack() as stack:
        pipes = None
        if _PIPES_CONTEXT_VARIABLE in os.environ:
            from dagster_pipes import open_dagster_pipes

            pipes = stack.enter_context(open_dagster_pipes())
        channel = EventChannel(stream, pipes)
        try:
            job = job_type.model_validate(json.load(sys.stdin))
            with _reported_memory(channel) if report_memory else nullcontext():
                answer = handle(job, channel)
            channel.result(answer)
            return
        except Exception as error:
            if not isinstance(error, QuantAssetsError):
                traceback.print_exc()
            channel.error(_known_error(error))
    sys.exit(1)
