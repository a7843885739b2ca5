"""One set-up at a time: later ones wait, and announce the holder and the time limit."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from steps import SetupError, say

# More than the slowest set-up: 3 GB over a slow connection, and a build on one old core.
WAIT_LIMIT_S = 3600.0
_POLL_S = 0.2


@contextmanager
def turn(path: Path, purpose: str) -> Iterator[None]:
    """Hold the lock file `path`; the lock ends with the process, so a killed set-up holds nothing.

    Raises `SetupError` when another process holds it for longer than `WAIT_LIMIT_S`.
    """
    descriptor = _acquire(path, purpose)
    try:
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"process {os.getpid()} ({purpose})".encode(), 0)
        yield
    finally:
        os.ftruncate(descriptor, 0)
        os.close(descriptor)


def _acquire(path: Path, purpose: str) -> int:
    path.parent.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + WAIT_LIMIT_S
    announced = False
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(descriptor, 200, 0).decode(errors="replace") or "another set-up"
            os.close(descriptor)
        else:
            if _is_still(path, descriptor):
                return descriptor
            os.close(descriptor)
            continue
        if time.monotonic() > deadline:
            raise SetupError(
                f"{holder} has been running for more than {WAIT_LIMIT_S / 60:.0f} minutes, and "
                f"{purpose} has to wait for it; end it if it hangs, and run the command again."
            )
        if not announced:
            say(f"waiting for {holder}, at most {WAIT_LIMIT_S / 60:.0f} minutes")
            announced = True
        time.sleep(_POLL_S)


def _is_still(path: Path, descriptor: int) -> bool:
    """Whether the locked file is still the one at `path`."""
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False
