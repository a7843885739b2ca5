"""The parent's side of a worker: start it, follow its events, and turn every end into an answer.

Whatever happens to the worker (a signal, an abort of a native library, no memory, no disk, a
hang), the parent gets a result or one error with three parts, and lives on.
"""

import contextlib
import os
import selectors
import signal
import subprocess
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from typing import IO, TypeVar

from pydantic import BaseModel, ValidationError

from quant_assets import errors
from quant_assets.errors import QuantAssetsError, WorkerError
from quant_assets.redaction import redact
from quant_assets.settings import PROJECT_ROOT
from quant_assets.workers.environments import EnvironmentName, interpreter
from quant_assets.workers.protocol import (
    EVENT_ADAPTER,
    ErrorEvent,
    Event,
    MemoryEvent,
    ProgressEvent,
    ResultEvent,
)

ResultT = TypeVar("ResultT", bound=BaseModel)

STDERR_LINES_KEPT = 8
DEFAULT_STALL_TIMEOUT_S = 1800.0
_NATIVE_CRASHES = {signal.SIGSEGV, signal.SIGILL, signal.SIGBUS, signal.SIGFPE}


def run_worker(
    worker: str,
    job: BaseModel,
    result_type: type[ResultT],
    *,
    environment: EnvironmentName = "main",
    on_event: Callable[[Event], None] | None = None,
    extra_env: Mapping[str, str] | None = None,
    stall_timeout_s: float = DEFAULT_STALL_TIMEOUT_S,
) -> ResultT:
    """Run `job` in the worker `quant_assets.workers.<worker>` and return its validated result.

    `on_event` sees every event in order. A worker that sends nothing but memory events for
    `stall_timeout_s` seconds is killed. Raises the worker's own error when it sent one, and
    `WorkerError` when it died, hung, or broke the protocol.
    """
    process = _start(worker, environment, extra_env or {})
    stderr_tail: deque[str] = deque(maxlen=STDERR_LINES_KEPT)
    assert process.stdin is not None and process.stdout is not None and process.stderr is not None
    stderr_reader = threading.Thread(
        target=_follow_stderr, args=(process.stderr, stderr_tail), daemon=True
    )
    stderr_reader.start()
    outcome: ResultEvent | ErrorEvent | None = None
    last_progress: ProgressEvent | None = None
    last_memory: MemoryEvent | None = None
    try:
        try:
            process.stdin.write(job.model_dump_json().encode())
            process.stdin.close()
        except BrokenPipeError:
            pass  # it died at once; its return code says how
        for event in _events(worker, process, stall_timeout_s):
            if isinstance(event, ProgressEvent):
                last_progress = event
            elif isinstance(event, MemoryEvent):
                last_memory = event
            elif isinstance(event, ResultEvent | ErrorEvent):
                outcome = event
            if on_event is not None:
                on_event(event)
        return_code = process.wait()
    finally:
        _kill(process)
        stderr_reader.join(timeout=5)
        process.stdout.close()
        process.stderr.close()
    if isinstance(outcome, ErrorEvent):
        raise _sent_error(outcome)
    if return_code != 0 or outcome is None:
        raise _death(worker, return_code, last_progress, last_memory, list(stderr_tail))
    return result_type.model_validate(outcome.result)


def _start(
    worker: str, environment: EnvironmentName, extra_env: Mapping[str, str]
) -> "subprocess.Popen[bytes]":
    env = {**os.environ, **extra_env}
    # A worker environment does not have the project installed; it sees its source.
    env["PYTHONPATH"] = os.pathsep.join(
        part for part in (str(PROJECT_ROOT), env.get("PYTHONPATH", "")) if part
    )
    return subprocess.Popen(
        [str(interpreter(environment)), "-m", f"quant_assets.workers.{worker}"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=env,
        # A group of its own: Ctrl-C reaches the parent only, which then ends the whole group.
        start_new_session=True,
    )


def _follow_stderr(stream: IO[bytes], tail: deque[str]) -> None:
    for line in stream:
        tail.append(redact(line.decode(errors="replace").rstrip()))


def _kill(process: "subprocess.Popen[bytes]") -> None:
    if process.poll() is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _events(
    worker: str, process: "subprocess.Popen[bytes]", stall_timeout_s: float
) -> Iterator[Event]:
    """Yield the worker's events until its output ends; raise when it stalls."""
    assert process.stdout is not None
    descriptor = process.stdout.fileno()
    selector = selectors.DefaultSelector()
    selector.register(descriptor, selectors.EVENT_READ)
    buffer = b""
    last_sign = time.monotonic()
    with selector:
        while True:
            remaining = last_sign + stall_timeout_s - time.monotonic()
            if remaining <= 0:
                raise WorkerError(
                    f"The worker {worker!r} was stopped.",
                    f"It made no progress for {stall_timeout_s:.0f} s.",
                    "Run the same command again; if it hangs once more, use a smaller model or "
                    "fewer threads.",
                )
            if not selector.select(remaining):
                continue
            chunk = os.read(descriptor, 1 << 16)
            if not chunk:
                return
            *lines, buffer = (buffer + chunk).split(b"\n")
            for line in lines:
                event = _parse(worker, line)
                if not isinstance(event, MemoryEvent):
                    last_sign = time.monotonic()
                yield event


def _parse(worker: str, line: bytes) -> Event:
    try:
        return EVENT_ADAPTER.validate_json(line)
    except ValidationError as error:
        raise WorkerError(
            f"The worker {worker!r} sent something that is no event.",
            f"It sent {line[:200]!r}.",
            "Something in the worker writes to its event stream; report this.",
        ) from error


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
    next_step = "Run the same command again; if it fails once more, its last lines say where."
    if return_code < 0:
        number = signal.Signals(-return_code)
        what = f"The worker {worker!r} was ended by {number.name}{during}."
        if number is signal.SIGKILL:
            why.append("SIGKILL comes from a person or from the system when memory runs out.")
            next_step = (
                "Look for an out-of-memory line in the kernel's log; with enough free memory, run "
                "the same command again."
            )
        elif number is signal.SIGABRT:
            why.append("A native library gave up on its input or its state.")
            next_step = (
                "Check the model's files; the last lines of the library's log name the spot."
            )
        elif number in _NATIVE_CRASHES:
            why.append("A native library crashed, often one built for another processor.")
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
