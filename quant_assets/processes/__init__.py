"""How processes of the project are started, and how they end."""

import os
import sys
from collections.abc import Sequence
from pathlib import Path

_GUARD = Path(__file__).with_name("guard.py")


def guarded(command: Sequence[str], *, grace_s: float = 0.0) -> list[str]:
    """`command` as a child of a guard, which ends it and everything it started.

    The guard (`quant_assets.processes.guard`) acts when this process is gone, however it ended,
    when `command` has ended, and on SIGINT, SIGTERM or SIGHUP: then the command gets `grace_s`
    seconds to end by itself. The guard exits as the command did, by the same signal if by one.
    """
    # Isolated and without site-packages: it starts in milliseconds and nothing can shadow it.
    python = [sys.executable, "-I", "-S", str(_GUARD)]
    return [*python, str(os.getpid()), str(grace_s), *command]
