"""The protocol between a worker and its parent: one JSON job in, JSON-lines events out.

The worker's side is `serve`; the parent's side is `quant_assets.processes.supervisor`.
"""

import ctypes
import datetime
import json
import logging
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from typing import IO, TYPE_CHECKING, Annotated, Any, Literal, NamedTuple, TypeVar

from pydantic import BaseModel, Field, TypeAdapter

from quant_assets.errors import QuantAssetsError, explained
from quant_assets.processes.memory import MemoryMeter, MemoryUsage, VramReader
from quant_assets.processes.quantization_job import QuantizationJob
from quant_assets.redaction import redact, redact_values

if TYPE_CHECKING:
    from dagster_pipes import PipesContext

JobT = TypeVar("JobT", bound=BaseModel)

MEMORY_INTERVAL_S = 1.0
_PIPES_CONTEXT_VARIABLE = "DAGSTER_PIPES_CONTEXT"
_PR_SET_PDEATHSIG = 1  # linux/prctl.h


class ProgressEvent(BaseModel):
    """The progress of a step: `done` of `total` units.

    The step is the `step_number`th of the job's `n_steps`; `job_fraction`, from 0 to 1, is how much
    of the whole job is done. Null: the sender does not know.
    """

    event: Literal["progress"] = "progress"
    step: str
    done: float
    total: float
    unit: str
    step_number: int | None = None
    n_steps: int | None = None
    job_fraction: float | None = Field(default=None, ge=0, le=1)


class LogEvent(BaseModel):
    """One line for the user."""

    event: Literal["log"] = "log"
    level: Literal["debug", "info", "warning"]
    message: str


class MemoryEvent(MemoryUsage):
    """Memory of the worker in bytes, current and peak."""

    event: Literal["memory"] = "memory"


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


class _PlannedStep(NamedTuple):
    number: int
    start: float
    share: float


class EventChannel:
    """Sends the events of one job to the parent and, under Dagster Pipes, to the run's log.

    Progress goes to the parent alone, which knows the whole job and logs it. `memory_with_progress`
    sends a memory event after each progress event, in place of a thread that samples memory.
    """

    def __init__(
        self,
        stream: IO[str],
        pipes: "PipesContext | None" = None,
        *,
        memory_with_progress: bool = False,
    ) -> None:
        self._stream = stream
        self._pipes = pipes
        self._memory_with_progress = memory_with_progress
        self._lock = threading.Lock()
        self._meter = MemoryMeter()
        self._started = datetime.datetime.now(datetime.UTC)
        self._steps: dict[str, _PlannedStep] = {}

    def _send(self, event: BaseModel) -> None:
        # Redact before serializing: a secret that looks like a number or a protocol keyword must not
        # break the stream.
        line = redacted(event).model_dump_json()
        with self._lock:
            self._stream.write(line + "\n")
            self._stream.flush()

    def plan_steps(self, usual_shares: Mapping[str, float]) -> None:
        """Declare the job's steps in order, each with its usual share of the job's time.

        Only the ratio of the shares matters. Steps that are not declared have no number.
        """
        total, start = sum(usual_shares.values()), 0.0
        self._steps = {}
        for number, (step, share) in enumerate(usual_shares.items(), start=1):
            self._steps[step] = _PlannedStep(number, start / total, share / total)
            start += share

    def progress(self, step: str, done: float, total: float, unit: str) -> None:
        """Report that `done` of `total` units of `step` are finished."""
        planned = self._steps.get(step)
        if planned is None:
            self._send(ProgressEvent(step=step, done=done, total=total, unit=unit))
        else:
            fraction = min(1.0, done / total) if total else 1.0
            self._send(
                ProgressEvent(
                    step=step,
                    done=done,
                    total=total,
                    unit=unit,
                    step_number=planned.number,
                    n_steps=len(self._steps),
                    job_fraction=min(1.0, planned.start + planned.share * fraction),
                )
            )
        if self._memory_with_progress:
            self.memory()

    def log(self, message: str, level: Literal["debug", "info", "warning"] = "info") -> None:
        """Send one line for the user."""
        self._send(LogEvent(level=level, message=message))
        if self._pipes is not None:
            self._pipes.log.log(logging.getLevelNamesMapping()[level.upper()], redact(message))

    def read_vram_with(self, reader: VramReader) -> None:
        """Read GPU memory with `reader` from now on; it is called in any thread."""
        self._meter.read_vram = reader

    def memory_usage(self) -> MemoryUsage:
        """Memory of this process, now and at its peak."""
        return self._meter.read()

    def memory(self) -> None:
        """Report the memory of this process."""
        self._send(MemoryEvent(**self.memory_usage().model_dump()))

    def completed_job(self, memory: MemoryUsage) -> QuantizationJob:
        """The job's final state, for its record."""
        last = list(self._steps)[-1] if self._steps else None
        return QuantizationJob(
            status="completed",
            step=last,
            step_number=len(self._steps) or None,
            n_steps=len(self._steps) or None,
            progress_percentage=100,
            start_time=self._started,
            estimated_completion=datetime.datetime.now(datetime.UTC),
            memory_usage=memory,
        )

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
def _sampled_memory(channel: EventChannel) -> Iterator[None]:
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
    sample_memory: bool = True,
) -> None:
    """Run one job in this process and exit: 0 with a result sent, 1 with an error sent.

    Standard output carries only events; output of libraries is redirected to standard error.
    `sample_memory=False` is for measurements, which no other thread may disturb: memory is read
    when progress is reported, between two measurements.
    """
    _die_with_parent()
    stream = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    with ExitStack() as stack:
        pipes = None
        if _PIPES_CONTEXT_VARIABLE in os.environ:
            from dagster_pipes import open_dagster_pipes

            pipes = stack.enter_context(open_dagster_pipes())
        channel = EventChannel(stream, pipes, memory_with_progress=not sample_memory)
        try:
            job = job_type.model_validate(json.load(sys.stdin))
            with _sampled_memory(channel) if sample_memory else nullcontext():
                answer = handle(job, channel)
            channel.result(answer)
            return
        except Exception as error:
            if not isinstance(error, QuantAssetsError):
                traceback.print_exc()
            channel.error(_known_error(error))
    sys.exit(1)
