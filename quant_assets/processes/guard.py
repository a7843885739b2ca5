"""Run one command and end all of it when the process that requested it ends.

`python -I -S guard.py <parent> <grace> <command>...`, standard library only; parent 0: none. A
process killed by SIGKILL cannot end its children; its guard notices within `POLL_S` seconds that
the parent is gone and kills the command with all its descendants. Descendants left over when the
command ends are killed too: a grandchild that holds a pipe would keep its reader waiting.

Life cycle: start the command, in a session of its own unless the guard leads one already (then a
terminal's Ctrl-C reaches the guard alone); wait; on SIGINT, SIGTERM or SIGHUP pass the signal on and
kill after the grace period; exit as the command did.
"""

import contextlib
import ctypes
import os
import resource
import select
import signal
import sys
import time
from pathlib import Path

POLL_S = 1.0
KILL_LIMIT_S = 3.0
_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_PR_SET_CHILD_SUBREAPER = 36
_STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_LINUX = sys.platform == "linux"


class Guard:
    """One command and its descendants."""

    def __init__(self, parent: int, grace_s: float, command: list[str]) -> None:
        self._parent = parent
        self._grace_s = grace_s
        self._command = command
        self._child = 0
        self._status: int | None = None
        self._stops: list[int] = []

    def run(self) -> int:
        """Run the command to its end; returns its wait status."""
        # A signal wakes the `select` below through this pipe, whenever it arrives.
        wake_reader, wake_writer = os.pipe()
        os.set_blocking(wake_reader, False)
        os.set_blocking(wake_writer, False)
        signal.set_wakeup_fd(wake_writer, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        for number in _STOP_SIGNALS:
            # SIGHUP ignored by `nohup` stays ignored; SIGINT, ignored by shells in the background, does not.
            if number != signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, lambda number, _: self._stops.append(number))
        if _LINUX:
            # Orphaned descendants become children of this process.
            ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1)
            # A nested guard must outlive its own guard to clean up.
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, 0)
        self._child = self._start()
        deadline: float | None = None
        while True:
            self._reap()
            if self._status is not None or self._parent not in (0, os.getppid()):
                break
            if self._stops and deadline is None:
                deadline = time.monotonic() + self._grace_s
                with contextlib.suppress(ProcessLookupError):
                    # dbt and Dagster shut down cleanly on SIGINT and SIGTERM but do not handle SIGHUP.
                    first = self._stops[0]
                    os.kill(self._child, signal.SIGTERM if first == signal.SIGHUP else first)
            if deadline is not None and time.monotonic() >= deadline:
                self._kill()
                deadline = time.monotonic() + POLL_S
            wait_s = POLL_S if deadline is None else deadline - time.monotonic()
            select.select([wake_reader], [], [], max(0.0, min(POLL_S, wait_s)))
            with contextlib.suppress(BlockingIOError):
                os.read(wake_reader, 1024)
        self._kill()
        return signal.SIGKILL if self._status is None else self._status

    def _start(self) -> int:
        guard = os.getpid()
        child = os.fork()
        if child:
            return child
        try:
            if os.getsid(0) != guard:
                os.setsid()
            if _LINUX:
                # The signal fires when the forking thread ends; the guard has only one.
                ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
                if os.getppid() != guard:
                    os._exit(1)
            signal.signal(
                signal.SIGPIPE, signal.SIG_DFL
            )  # Python ignores it, and exec inherits that
            os.execvp(self._command[0], self._command)  # noqa: S606
        except OSError as error:
            os.write(2, f"{self._command[0]}: {error.strerror}\n".encode())
        os._exit(127)

    def _reap(self) -> None:
        """Reap ended children and keep the command's wait status."""
        with contextlib.suppress(ChildProcessError):
            while True:
                pid, ended = os.waitpid(-1, os.WNOHANG)
                if pid == 0:
                    break
                if pid == self._child:
                    self._status = ended

    def _kill(self) -> None:
        """Kill all descendants, including new ones that appear meanwhile."""
        limit = time.monotonic() + KILL_LIMIT_S
        while (left := descendants(os.getpid())) and time.monotonic() < limit:
            for pid in left:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.kill(pid, signal.SIGKILL)
            self._reap()
            time.sleep(0.01)
        self._reap()


def descendants(ancestor: int) -> list[int]:
    """The running descendants of `ancestor`."""
    children: dict[int, list[int]] = {}
    for pid, parent in _processes():
        children.setdefault(parent, []).append(pid)
    found: list[int] = []
    todo = [ancestor]
    while todo:
        below = children.get(todo.pop(), [])
        found += below
        todo += below
    return found


def _processes() -> list[tuple[int, int]]:
    """(process, its parent) of all running processes, without zombies."""
    if not _LINUX:
        with os.popen("exec /bin/ps -axo pid=,ppid=,stat=,ucomm=") as listing:  # noqa: S605, S607
            rows = [line.split(None, 3) for line in listing]
        return [
            (int(pid), int(parent))
            for pid, parent, state, name in rows
            if state[0] != "Z" and name.strip() != "ps"
        ]
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            # "pid (name) state parent ..."; the name may hold spaces and parentheses.
            state, parent = (entry / "stat").read_text().rpartition(")")[2].split()[:2]
        except OSError:
            continue
        if state != "Z":
            found.append((int(entry.name), int(parent)))
    return found


def main(arguments: list[str]) -> int:
    """Guard the command of `arguments`; return its exit status or die by its signal."""
    status = Guard(int(arguments[0]), float(arguments[1]), arguments[2:]).run()
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        # The command has already written its core file, if any.
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        if number not in (signal.SIGKILL, signal.SIGSTOP):
            signal.signal(number, signal.SIG_DFL)
        signal.set_wakeup_fd(-1)
        os.kill(os.getpid(), number)
    return os.WEXITSTATUS(status)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
