"""The parent's side of a worker: start it, follow its events, and turn every ending into an answer.

Whatever happens to the worker (a signal, an abort in a native library, lack of memory or disk, a
hang), the parent gets a result or one three-part error, and survives.
"""

import contextlib
import os
import selectors
import signal
import subprocess
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping
from typing import IO, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import PydanticSerializationError

from quant_assets import errors
from quant_assets.errors import InputError, QuantAssetsError, WorkerError
from quant_assets.processes.environments import EnvironmentName, interpreter, worker_variables
from quant_assets.processes.guarded import guarded
from quant_assets.processes.protocol import (
    EVENT_ADAPTER,
    ErrorEvent,
    Event,
    MemoryEvent,
    ProgressEvent,
    ResultEvent,
    redacted,
)
from quant_assets.processes.session import UNATTENDED, WorkerSession
from quant_assets.redaction import redact

ResultT = TypeVar("ResultT", bound=BaseModel)

STDERR_LINES_KEPT = 8
DEFAULT_STALL_TIMEOUT_S = 1800.0
LONGEST_EVENT_BYTES = 64 << 20
"""The results of a long evaluation take a few MB; a longer line is not an event."""
EXIT_LIMIT_S = 60.0
"""A worker has nothing left to do after its answer; one that lingers is ended."""
KILL_LIMIT_S = 2.0
_POLL_S = 1.0
_STDERR_LINE_BYTES = 1 << 16
_NATIVE_CRASHES = {signal.SIGSEGV, signal.SIGILL, signal.SIGBUS, signal.SIGFPE}


def run_worker(
    worker: str,
    job: BaseModel,
    result_type: type[ResultT],
    *,
    environment: EnvironmentName = "main",
    session: WorkerSession = UNATTENDED,
    stall_timeout_s: float = DEFAULT_STALL_TIMEOUT_S,
) -> ResultT:
    """Run `job` in the worker `quant_assets.workers.<worker>` and return its validated result.

    `session` receives every event in order. A worker that sends only memory events for
    `stall_timeout_s` seconds is killed. Raises the worker's own error if it sent one, and
    `WorkerError` if it died, hung, or broke the protocol.
    """
    job_json = _as_json(job)
    process = _start(worker, environment, session.variables)
    stderr_tail: deque[str] = deque(maxlen=STDERR_LINES_KEPT)
    assert process.stdin is not None and process.stdout is not None and process.stderr is not None
    stderr_reader = threading.Thread(
        target=_follow_stderr, args=(process.stderr, stderr_tail), daemon=True
    )
    stderr_reader.start()
    # In a thread, because a worker that never reads its job must not block this process.
    job_writer = threading.Thread(target=_write_job, args=(process.stdin, job_json), daemon=True)
    job_writer.start()
    outcome: ResultEvent | ErrorEvent | None = None
    last_progress: ProgressEvent | None = None
    last_memory: MemoryEvent | None = None
    try:
        for event in _events(worker, process, stall_timeout_s):
            if isinstance(event, ProgressEvent):
                last_progress = event
            elif isinstance(event, MemoryEvent):
                last_memory = event
            elif isinstance(event, ResultEvent | ErrorEvent):
                outcome = event
            if session.on_event is not None:
                session.on_event(event)
    finally:
        lingered = not _end(process)
        job_writer.join(timeout=KILL_LIMIT_S)
        stderr_reader.join(timeout=KILL_LIMIT_S)
        process.stdout.close()
        process.stderr.close()
    if isinstance(outcome, ErrorEvent):
        raise _sent_error(outcome)
    if outcome is None or (process.returncode != 0 and not lingered):
        raise _death(worker, process.returncode, last_progress, last_memory, list(stderr_tail))
    try:
        return result_type.model_validate(outcome.result)
    except ValidationError as error:
        raise WorkerError(
            f"The worker {worker!r} sent an answer with the wrong structure.",
            str(error),
            "Update its environment to the project's version with `make setup` or "
            "`make setup-groupwise`, then run the same command again.",
        ) from error


def _start(
    worker: str, environment: EnvironmentName, variables: Mapping[str, str]
) -> "subprocess.Popen[bytes]":
    return subprocess.Popen(
        guarded([str(interpreter(environment)), "-m", f"quant_assets.workers.{worker}"]),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**worker_variables(os.environ), **variables},
        # A separate process group: Ctrl-C reaches only the parent, which then ends the whole group.
        start_new_session=True,
    )


def _as_json(job: BaseModel) -> bytes:
    try:
        return job.model_dump_json().encode()
    except PydanticSerializationError as error:
        raise InputError(
            "The name of a file or folder of this job is not UTF-8.",
            f"{error}.",
            "Rename it.",
        ) from error


def _write_job(stream: IO[bytes], job: bytes) -> None:
    # A worker that died immediately reads nothing; its return code tells how.
    with contextlib.suppress(BrokenPipeError):
        stream.write(job)
    with contextlib.suppress(BrokenPipeError):
        stream.close()


def _follow_stderr(stream: IO[bytes], tail: deque[str]) -> None:
    while line := stream.readline(_STDERR_LINE_BYTES):
        tail.append(redact(line.decode(errors="replace").rstrip()))


def _ended(process: "subprocess.Popen[bytes]") -> bool:
    """Whether the process has ended; it is not reaped, so its id still identifies its group."""
    if process.returncode is not None:
        return True
    return os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def _end(process: "subprocess.Popen[bytes]") -> bool:
    """End the worker and its descendants and reap it; returns whether it had ended by itself.

    The guard kills its command when it is told to end. If it does not do so in time, or is dead
    itself, its process group is killed here.
    """
    ended = _ended(process)
    if not ended:
        os.kill(process.pid, signal.SIGTERM)
        limit = time.monotonic() + KILL_LIMIT_S
        while not _ended(process) and time.monotonic() < limit:
            time.sleep(0.01)
    _kill_group(process)
    process.wait()
    return ended


def _kill_group(process: "subprocess.Popen[bytes]") -> None:
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)


def _events(
    worker: str, process: "subprocess.Popen[bytes]", stall_timeout_s: float
) -> Iterator[Event]:
    """Yield the worker's events until its output ends; raise if it stalls or breaks the protocol.

    Returns after `EXIT_LIMIT_S` seconds when a worker that has answered does not end.
    """
    assert process.stdout is not None
    descriptor = process.stdout.fileno()
    selector = selectors.DefaultSelector()
    selector.register(descriptor, selectors.EVENT_READ)
    buffer = bytearray()
    answered = False
    last_sign = time.monotonic()
    with selector:
        while True:
            limit = EXIT_LIMIT_S if answered else stall_timeout_s
            remaining = last_sign + limit - time.monotonic()
            if remaining <= 0 and answered:
                return
            if remaining <= 0:
                raise WorkerError(
                    f"The worker {worker!r} was stopped.",
                    f"It made no progress for {stall_timeout_s:.0f} s.",
                    "Run the same command again; if it hangs again, use a smaller model or "
                    "fewer threads.",
                )
            if not selector.select(min(remaining, _POLL_S)):
                if _ended(process):
                    # The guard was killed, and its command may still hold the pipe open.
                    _kill_group(process)
                    return
                continue
            chunk = os.read(descriptor, 1 << 16)
            if not chunk:
                return
            *lines, rest = chunk.split(b"\n")
            for line in lines:
                event = _parse(worker, bytes(buffer) + line)
                buffer.clear()
                if answered:
                    raise _breach(worker, "an event after its answer", line)
                answered = isinstance(event, ResultEvent | ErrorEvent)
                if not isinstance(event, MemoryEvent):
                    last_sign = time.monotonic()
                yield event
            buffer += rest
            if len(buffer) > LONGEST_EVENT_BYTES:
                size = f"a line of more than {LONGEST_EVENT_BYTES >> 20} MiB"
                raise _breach(worker, size, bytes(buffer[:200]))


def _parse(worker: str, line: bytes) -> Event:
    try:
        event = EVENT_ADAPTER.validate_json(line)
    except (ValidationError, RecursionError) as error:
        raise _breach(worker, "an invalid event", line) from error
    # This process knows secrets that the worker does not. A result is used, not shown.
    return event if isinstance(event, ResultEvent) else redacted(event)


def _breach(worker: str, sent: str, line: bytes) -> WorkerError:
    return WorkerError(
        f"The worker {worker!r} sent {sent}.",
        f"It sent {redact(line[:200].decode(errors='replace'))!r}.",
        "Code in the worker writes to its event stream; report this.",
    )


def _sent_error(event: ErrorEvent) -> QuantAssetsError:
    error_type = getattr(errors, event.error_type, QuantAssetsError)
    if not (isinstance(error_type, type) and issubclass(error_type, QuantAssetsError)):
        error_type = QuantAssetsError
    return error_type(event.what, event.why, event.next_step)


def _death(
    worker: str,
    return_code: int,
    progress: ProgressEvent | None,
    memory: MemoryEvent | None,
    stderr_tail: list[str],
) -> WorkerError:
    during = ""
    if progress is not None:
        during = f" during {progress.step!r} ({progress.done:g} of {progress.total:g})"
    why: list[str] = []
    next_step = "Run the same command again; if it fails again, its last lines tell where."
    if return_code < 0:
        number = signal.Signals(-return_code)
        what = f"The worker {worker!r} was ended by {number.name}{during}."
        if number is signal.SIGKILL:
            why.append("SIGKILL comes from a user, or from the system when memory runs out.")
            next_step = (
                "Look for an out-of-memory line in the kernel's log; once enough memory is free, run "
                "the same command again."
            )
        elif number is signal.SIGABRT:
            why.append("A native library aborted because of its input or its state.")
            next_step = "Check the model's files; the last lines of the library's log tell where."
        elif number in _NATIVE_CRASHES:
            why.append(
                "A native library crashed, often because it was built for another processor."
            )
            next_step = (
                "Rebuild with `python3 environments/bootstrap.py main --rebuild`, then run the "
                "same command again."
            )
    elif return_code == 0:
        what = f"The worker {worker!r} ended without an answer{during}."
    else:
        what = f"The worker {worker!r} exited with status {return_code}{during}."
    if memory is not None:
        why.append(f"Its memory peaked at {memory.peak_rss_bytes / 1e9:.2f} GB.")
    shown = [line for line in stderr_tail if line.strip()]
    if shown:
        why.append("Its last lines were: " + " | ".join(shown))
    if not why:
        why.append("It left no message.")
    return WorkerError(what, " ".join(why), next_step)
