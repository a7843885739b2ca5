"""Ctrl-C, SIGTERM and a closed terminal end this process and its descendants within a time limit.

The first signal raises `KeyboardInterrupt` (or calls the handler that a library installed) in the
main thread, so that work ends cleanly. Code that swallows it, or blocks where Python cannot
interrupt, is ended by a thread after `GRACE_S` seconds or on a second signal: all descendants are
killed, then this process. Life cycle: `prompt_end` around the whole command.
"""

import os
import select
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType

import psutil

GRACE_S = 3.0
SECOND_SIGNAL_AFTER_S = 0.5
"""An earlier one is the same Ctrl-C, sent by the terminal and forwarded by `make` or a shell."""

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_received: list[int] = []


def received_signal() -> int | None:
    """The signal that asked this process to end, or None."""
    return _received[0] if _received else None


@contextmanager
def prompt_end() -> Iterator[None]:
    """End this process promptly on a signal while the block runs; for the main thread only."""
    _received.clear()
    reader, writer = socket.socketpair()
    writer.setblocking(False)
    before = {number: signal.getsignal(number) for number in _SIGNALS}
    # Python's C code writes to it whichever handler is installed, such as Dagster's.
    former = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
    # Shells ignore SIGINT for background jobs; it is handled here all the same.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, _as_interrupt)
    if before[signal.SIGHUP] is not signal.SIG_IGN:  # as `nohup` requires
        signal.signal(signal.SIGHUP, _as_interrupt)
    watch = threading.Thread(target=_watch, args=(reader,), daemon=True)
    watch.start()
    try:
        yield
    finally:
        # After a signal the interpreter may still wait for a thread, so the watch stays on.
        if not _received:
            signal.set_wakeup_fd(former)
            writer.close()
            watch.join(timeout=1)
            reader.close()
        for number, handler in before.items():
            signal.signal(number, handler)


def _as_interrupt(number: int, frame: FrameType | None) -> None:
    """Act as SIGINT would."""
    _received.append(number)
    handler = signal.getsignal(signal.SIGINT)
    if callable(handler) and handler is not _as_interrupt:
        handler(number, frame)
    else:
        raise KeyboardInterrupt


def _watch(reader: socket.socket) -> None:
    first: float | None = None
    while True:
        wait_s = None if first is None else max(0.0, first + GRACE_S - time.monotonic())
        ready, _, _ = select.select([reader], [], [], wait_s)
        if not ready:
            _end_now()
        numbers = reader.recv(64)
        if not numbers:
            return
        stops = [number for number in numbers if number in _SIGNALS]
        if not stops:
            continue
        _received.extend(stops)
        if first is None:
            first = time.monotonic()
        elif time.monotonic() - first > SECOND_SIGNAL_AFTER_S:
            _end_now()


def _end_now() -> None:
    with suppress(psutil.Error):
        for process in psutil.Process().children(recursive=True):
            with suppress(psutil.Error):
                process.kill()
    os._exit(128 + _received[0])
