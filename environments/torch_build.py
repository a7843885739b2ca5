"""The build of torch for an environment: CUDA's 2.7 GB only where a GPU can use them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from steps import SetupError, Unreachable, run, say

ENVIRONMENTS = Path(__file__).resolve().parent
CHOICE = "QUANT_ASSETS_TORCH"
BUILDS = ("cpu", "cuda")
_FAILURE = "torch could not be installed"


def chosen_build() -> str | None:
    """`cpu` or `cuda` if QUANT_ASSETS_TORCH is set; None leaves the choice to set-up."""
    choice = os.environ.get(CHOICE) or None
    if choice not in (None, *BUILDS):
        raise SetupError(f"{CHOICE} is {choice!r}; set it to `cpu` or `cuda`, or unset it.")
    return choice


def wanted_build() -> str:
    """The build for this machine. macOS has only one build, which counts as `cpu`."""
    if sys.platform == "darwin":
        return "cpu"
    return chosen_build() or ("cuda" if has_nvidia_gpu() else "cpu")


def has_nvidia_gpu() -> bool:
    """Whether a GPU is usable: by its device files, or under WSL by the driver's answer."""
    if any(Path("/dev").glob("nvidia[0-9]*")):
        return True
    program = shutil.which("nvidia-smi") or "/usr/lib/wsl/lib/nvidia-smi"
    if not Path("/dev/dxg").exists() or not Path(program).exists():
        return False
    return b"GPU 0" in subprocess.run([program, "-L"], capture_output=True).stdout


def is_right(installed: str) -> bool:
    """Whether the build in an environment can stay.

    A CUDA build on a machine without a GPU can: the CPU build was unavailable or not requested.
    """
    return installed == wanted_build() or (installed == "cuda" and chosen_build() is None)


def install_torch(install: Sequence[str | Path], require_space: Callable[[str], None]) -> str:
    """Install torch with the command `install` and return the build: `cpu` or `cuda`.

    The CPU build is looked up at PIP_FIND_LINKS, then on PyTorch's own index. If neither has it,
    torch comes from the package index, with CUDA.
    """
    if sys.platform == "darwin":
        run([*install, *_pins("torch")], _FAILURE)
        return "cpu"
    if wanted_build() == "cpu" and _installed_cpu_build(install):
        return "cpu"
    if chosen_build() == "cpu":
        raise SetupError(
            f"{_FAILURE}: PyTorch's CPU index is unreachable; check the network, or put the wheel "
            "into a folder and set PIP_FIND_LINKS to it."
        )
    require_space("cuda")
    run([*install, *_pins("torch", "cuda")], _FAILURE)
    return "cuda"


def _installed_cpu_build(install: Sequence[str | Path]) -> bool:
    sources: list[tuple[list[str], dict[str, str]]] = []
    if os.environ.get("PIP_FIND_LINKS"):
        sources.append(([], {}))
    sources.append((["--torch-backend=cpu"], {"UV_HTTP_RETRIES": "1"}))
    for options, env in sources:
        try:
            run(
                [*install, *options, *_pins("torch-cpu")],
                _FAILURE,
                {**env, **os.environ},
                attempt=True,
            )
        except Unreachable:
            continue
        return True
    say(
        "the CPU build of torch is unreachable; the package index's build includes CUDA, "
        "2.7 GB to download and 6 GB on disk, less if cached"
    )
    return False


def _pins(*names: str) -> list[str | Path]:
    return [part for name in names for part in ("--requirement", ENVIRONMENTS / f"{name}.txt")]
