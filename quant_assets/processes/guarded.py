"""Commands under a guard: they end when the process that started them ends, however it ends."""

import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

_GUARD = Path(__file__).with_name("guard.py")
# Isolated and without site-packages: it starts in milliseconds and nothing can shadow it.
_PYTHON = (sys.executable, "-I", "-S", str(_GUARD))
_NO_PARENT = "0"


def guarded(command: Sequence[str], *, grace_s: float = 0.0) -> list[str]:
    """`command` as a child of a guard, which ends it and everything it started.

    The guard (`quant_assets.processes.guard`) acts when this process is gone, when `command` has
    ended, and on SIGINT, SIGTERM or SIGHUP, which give the command `grace_s` seconds to end by
    itself. The guard exits as the command did, with the same signal if it died of one.
    """
    return [*_PYTHON, str(os.getpid()), str(grace_s), *command]


def guarded_script(command: Sequence[str], *, grace_s: float) -> str:
    """A shell script that runs `command` guarded, with the script's caller as the parent."""
    before = shlex.join(_PYTHON)
    return f'#!/bin/sh\nexec {before} "$PPID" {grace_s} {shlex.join(command)} "$@"\n'


def become_guarded(command: Sequence[str], *, grace_s: float) -> NoReturn:
    """Replace this process with `command`; none of its descendants outlives this process id.

    Two nested guards: the outer one takes over this process id, and however it ends, the inner one
    notices.
    """
    inner = guarded(command, grace_s=grace_s)
    # The outer guard has no parent to watch, so that `nohup` works; it waits a little longer.
    os.execv(sys.executable, [*_PYTHON, _NO_PARENT, str(grace_s + 1), *inner])  # noqa: S606
