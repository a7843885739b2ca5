"""What runs below a process, and what of it outlives the end that was promised."""

from collections.abc import Sequence

import psutil

PROMISED_S = 5.0


def below(pid: int) -> list[psutil.Process]:
    """Everything below a process that lives."""
    return [item for item in psutil.Process(pid).children(recursive=True) if lives(item)]


def lives(process: psutil.Process) -> bool:
    """Whether a process runs; a zombie does not."""
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def command_line(process: psutil.Process) -> str:
    """Its command line; nothing when it has ended."""
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def survivors(processes: Sequence[psutil.Process]) -> list[str]:
    """The command lines of those that live on after the five seconds that are promised."""
    _, left = psutil.wait_procs(processes, timeout=PROMISED_S)
    return [command_line(process) for process in left if lives(process)]
