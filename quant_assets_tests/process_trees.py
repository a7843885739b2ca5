"""Descendants of a process, and those that outlive its promised end."""

from collections.abc import Sequence

import psutil

PROMISED_S = 5.0


def below(pid: int) -> list[psutil.Process]:
    """All running descendants of a process."""
    return [item for item in psutil.Process(pid).children(recursive=True) if lives(item)]


def lives(process: psutil.Process) -> bool:
    """Whether a process is running; a zombie is not."""
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def command_line(process: psutil.Process) -> str:
    """The command line of a process; empty if it has ended."""
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def survivors(processes: Sequence[psutil.Process]) -> list[str]:
    """The command lines of processes still running after the promised five seconds."""
    _, left = psutil.wait_procs(processes, timeout=PROMISED_S)
    return [command_line(process) for process in left if lives(process)]
