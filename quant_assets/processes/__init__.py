"""How processes of the project are started, and how they end."""

import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

_GUARD = Path(__file__).with_name("guard.py")
# Isolated and without site-packages: it starts in milliseconds and nothing can shadow it.
_PYTHON = (sys.executable, "-I", "-S", str(_GUARD))
_NOBODY = "0"


def guarded(command: Sequence[str], *, grace_s: float = 0.0) -> list[str]:
    """`command` as a child of a guard, which ends it and everything it started.

    The guard (`quant_assets.processes.guard`) acts when this process is gone, however it ended,
    when `command` has ended, and on SIGINT, SIGTERM or SIGHUP: then the command gets `grace_s`
    seconds to end by itself. The guard exits as the command did, by the same signal if by one.
    """
    return [*_PYTHON, str(os.getpid()), str(grace_s), *command]


def guarded_script(command: Sequence[str], *, grace_s: float) -> str:
    """A shell script that runs `command` as `guarded` does, for whoever starts it."""
    before = shlex.join(_PYTHON)
    return f'#!/bin/sh\nexec {before} "$PPID" {grace_s} {shlex.join(command)} "$@"\n'


def become_guarded(command: Sequence[str], *, grace_s: float) -> NoReturn:
    """Replace this process by `command`; nothing of it outlives this process id.

    Two guards, one below the other: of the outer one, which has this process id, anything may
    become; the inner one notices.
    """
    inner = guarded(command, grace_s=grace_s)
    # The outer one waits a little longer, and ends with no parent: `nohup` and the like are meant.
    os.execv(sys.executable, [*_PYTHON, _NOBODY, str(grace_s + 1), *inner])  # noqa: S606
