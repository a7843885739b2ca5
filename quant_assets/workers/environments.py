"""The Python environments workers run in, and their interpreters."""

import sys
from pathlib import Path
from typing import Literal

from quant_assets.errors import EnvironmentNotReady
from quant_assets.settings import PROJECT_ROOT

EnvironmentName = Literal["main", "gptq", "awq"]


def interpreter(environment: EnvironmentName) -> Path:
    """The Python of `environment`: `main` is this process's own.

    Raises `EnvironmentNotReady` when a worker environment has not been made.
    """
    if environment == "main":
        return Path(sys.executable)
    python = PROJECT_ROOT / ".venvs" / environment / "bin" / "python"
    if not python.exists():
        raise EnvironmentNotReady(
            f"The worker environment {environment!r} does not exist.",
            f"There is no interpreter at {python}.",
            "Run `make setup-groupwise` in the project's folder, or "
            f"`python3 environments/bootstrap.py {environment}`.",
        )
    return python
