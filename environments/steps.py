"""Run the programs of set-up: failures become one sentence, interruptions leave nothing running."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

STILL_RUNNING_S = 60.0
_LINES_SHOWN = 5
_DISK = re.compile("no space left|disk quota", re.IGNORECASE)
_OTHER_FILE = re.compile("hash mismatch|do not match the hashes", re.IGNORECASE)
_MISSING = re.compile("there is no version of|no wheels with a matching", re.IGNORECASE)
_NETWORK = re.compile(
    r"name resolution|connection|\bnetwork\b|timed out|no matching distribution|could not resolve|"
    "dns error|error sending request|failed to fetch",
    re.IGNORECASE,
)


class SetupError(Exception):
    """Set-up cannot continue; the message is one sentence with the reason and the next step."""


class Unreachable(SetupError):
    """A package index was unreachable, or has no release for this machine."""


def say(message: str) -> None:
    """Print a progress message for the user."""
    print(f"set-up: {message}", file=sys.stderr, flush=True)


class _Children:
    """The process group of all programs of this set-up; it ends when set-up ends.

    Its leader waits for the end of a pipe that only this process holds open, and then kills the
    group. So nothing keeps writing to an environment after set-up was killed, however it was.
    """

    def __init__(self) -> None:
        self.leader: subprocess.Popen[bytes] | None = None
        self.stopped = False

    def start(self) -> None:
        self.stopped = False
        self.leader = subprocess.Popen(
            ["/bin/sh", "-c", "read -r _; kill -KILL 0"],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            process_group=0,
        )

    def stop(self) -> None:
        self.stopped = True
        if self.leader is not None and self.leader.poll() is None:
            os.killpg(self.leader.pid, signal.SIGKILL)
            self.leader.wait()
        self.leader = None


_children = _Children()


@contextmanager
def children_end_with_us() -> Iterator[None]:
    """In the block, every program that `run` starts ends with this process, however that ends."""

    def leave(number: int, _frame: object) -> None:
        sys.exit(128 + number)

    previous = {sign: signal.signal(sign, leave) for sign in (signal.SIGTERM, signal.SIGHUP)}
    _children.start()
    try:
        yield
    finally:
        _children.stop()
        _children.stopped = False
        for sign, handler in previous.items():
            signal.signal(sign, handler)


def stop_children() -> None:
    """End all programs immediately; calls of `run` that wait for one raise `SetupError`."""
    _children.stop()


def run(
    command: Sequence[str | Path],
    failure: str,
    env: dict[str, str] | None = None,
    *,
    attempt: bool = False,
) -> None:
    """Run one program to its end.

    Raises `Unreachable` or `SetupError` with `failure` and the reason. The program's last lines are
    printed first, unless this is an `attempt` and an index was unreachable.
    """
    leader = _children.leader
    if _children.stopped:
        raise SetupError(f"{failure}: set-up was stopped.")
    child = subprocess.Popen(
        [str(part) for part in command],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        env=env,
        process_group=leader.pid if leader else None,
    )
    output = _output_of(child, failure).strip()
    if child.returncode == 0:
        return
    if _children.stopped:
        raise SetupError(f"{failure}: set-up was stopped.")
    error = _error_of(output, failure)
    if not (attempt and isinstance(error, Unreachable)):
        print("\n".join(output.splitlines()[-_LINES_SHOWN:]), file=sys.stderr)
    raise error


def _error_of(output: str, failure: str) -> SetupError:
    if _DISK.search(output):
        return SetupError(
            f"{failure}: the disk is full; free some space and run the command again."
        )
    if _OTHER_FILE.search(output):
        return SetupError(
            f"{failure}: a file differs from the pinned one; check whether a mirror or a proxy of the "
            "package index changes files, and run the command again."
        )
    if _MISSING.search(output):
        return Unreachable(
            f"{failure}: the package index does not have this release for this machine; check "
            "which index is configured and run the command again."
        )
    if _NETWORK.search(output):
        return Unreachable(
            f"{failure}: the package index is unreachable; check the network and run the command "
            "again."
        )
    return SetupError(f"{failure}: its last lines are above.")


def _output_of(child: subprocess.Popen[str], failure: str) -> str:
    subject, started = failure.partition(" could not ")[0], time.monotonic()
    while True:
        try:
            return child.communicate(timeout=STILL_RUNNING_S)[0]
        except subprocess.TimeoutExpired:
            minutes = (time.monotonic() - started) / 60
            say(f"{subject}: still running after {minutes:.0f} min")
