"""Run the programs of set-up: what fails is one sentence, what is stopped leaves nothing running."""

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
    """Set-up cannot go on; the message is one sentence that says why and what to do."""


class Unreachable(SetupError):
    """A package index was not reached, or does not have a release for this machine."""


def say(message: str) -> None:
    """Tell the user what happens."""
    print(f"set-up: {message}", file=sys.stderr, flush=True)


class _Children:
    """The process group that all programs of this set-up run in; it ends when set-up ends.

    Its leader waits for the end of a pipe that this process alone holds open, and then kills the
    group. So nothing keeps writing into an environment after set-up was killed, however that was.
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
    """Inside, every program that `run` starts ends with this process, whatever ends it."""

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
    """End all programs at once; what waits for one of them gets a `SetupError`."""
    _children.stop()


def run(
    command: Sequence[str | Path],
    failure: str,
    env: dict[str, str] | None = None,
    *,
    attempt: bool = False,
) -> None:
    """Run one program to its end.

    Raises `Unreachable` or `SetupError`: `failure` and the reason. The program's last lines are
    printed before, unless this is an `attempt` and an index was not reached.
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
            f"{failure}: a file is not the one that was pinned; see whether a mirror or a proxy "
            "between here and the package index changes files, and run the command again."
        )
    if _MISSING.search(output):
        return Unreachable(
            f"{failure}: the package index does not have this release for this machine; check "
            "which index is configured and run the command again."
        )
    if _NETWORK.search(output):
        return Unreachable(
            f"{failure}: the package index was not reached; check the network and run the command "
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
            say(f"{subject}: still at work after {minutes:.0f} min")
