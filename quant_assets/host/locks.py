"""File locks whose waits are announced, name the holder, and time out."""

import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from quant_assets.errors import ResourceError

ANNOUNCED_AFTER_S = 2.0
"""Shorter waits are part of ordinary work and not worth a log line."""

SHORT_WAIT_S = 120.0
"""For locks held while one small file is rewritten."""

LONG_WAIT_S = 2 * 3600.0
"""For locks held while a model is fetched, quantized or measured."""

_LOG = logging.getLogger(__name__)
_PROC = Path("/proc")


@contextmanager
def exclusive_lock(path: Path, purpose: str, *, wait_s: float = SHORT_WAIT_S) -> Iterator[None]:
    """Hold the lock file `path` exclusively among all processes of this machine.

    `purpose` names what the lock protects, as in "the benchmarks of this machine". The lock ends
    with the process, however that ends. A wait of more than `ANNOUNCED_AFTER_S` seconds is logged
    as a warning. Raises `ResourceError` after `wait_s` seconds (0: at once), and when the lock
    file cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = _acquire(path, purpose, wait_s)
    except OSError as error:
        raise ResourceError(
            f"The lock file {path} cannot be used.",
            f"The system reported: {error.strerror or error}. It keeps two processes from changing "
            f"{purpose} at once.",
            "Make its folder writable, or choose another data root with QUANT_ASSETS_HOME.",
        ) from error
    try:
        yield
    finally:
        lock.release()


def _acquire(path: Path, purpose: str, wait_s: float) -> FileLock:
    lock = FileLock(path)
    started = time.monotonic()
    try:
        lock.acquire(timeout=min(wait_s, ANNOUNCED_AFTER_S))
    except Timeout as first:
        remaining = wait_s - (time.monotonic() - started)
        if remaining <= 0:
            raise _held(path, purpose, wait_s) from first
        _LOG.warning(
            "Waiting for %s (at most %.0f s): %s.",
            purpose,
            wait_s,
            _held_by(path, lock_holder(path)),
        )
        try:
            lock.acquire(timeout=remaining)
        except Timeout as second:
            raise _held(path, purpose, wait_s) from second
    return lock


def _held_by(path: Path, holder: int | None) -> str:
    return f"another process holds {path}" if holder is None else f"process {holder} holds {path}"


def _held(path: Path, purpose: str, wait_s: float) -> ResourceError:
    holder = lock_holder(path)
    held = _held_by(path, holder)
    return ResourceError(
        f"Another process is using {purpose}.",
        f"{held[0].upper()}{held[1:]}, and did not release it for {wait_s:.0f} s.",
        "Wait for the other command to end"
        + (f", or end it (`kill {holder}`)" if holder else "")
        + ", then run the same command again.",
    )


def lock_holder(path: Path) -> int | None:
    """The process that holds the `flock` of `path`; None where unknown (macOS)."""
    try:
        locked = path.stat()
        lines = (_PROC / "locks").read_text().splitlines()
    except OSError:
        return None
    for line in lines:
        # "1: FLOCK ADVISORY WRITE <pid> <device>:<inode> 0 EOF"; waiters are marked "->".
        fields = line.split()
        if len(fields) > 5 and fields[1] == "FLOCK" and fields[5].endswith(f":{locked.st_ino}"):
            pid = int(fields[4])
            # Inodes repeat across file systems, so check that the process has this file open.
            if pid > 0 and _has_open(pid, locked):
                return pid
    return None


def _has_open(pid: int, file: os.stat_result) -> bool:
    try:
        descriptors = list((_PROC / str(pid) / "fd").iterdir())
    except OSError:
        return False
    for descriptor in descriptors:
        try:
            if os.path.samestat(descriptor.stat(), file):
                return True
        except OSError:
            continue
    return False
