"""Create the project's Python environments: `python3 environments/bootstrap.py main --with demo`.

Needs Python 3.11 to 3.13 and only its standard library. An environment that already matches its
pins is left alone, within a fraction of a second. Nothing is resolved here: the pin files are
complete, and every file is verified by its hash. llama-cpp-python is built from source once per
machine and kept in the user's cache folder.

Without an NVIDIA GPU, torch's CPU build is used; QUANT_ASSETS_TORCH (`cpu` or `cuda`) overrides
this.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import time
import venv
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from llama_wheel import build_key as llama_build_key
from llama_wheel import compiler, is_built, llama_wheel
from steps import SetupError, children_end_with_us, run, say, stop_children
from torch_build import install_torch, is_right, wanted_build
from turns import turn

ENVIRONMENTS = Path(__file__).resolve().parent
PROJECT = ENVIRONMENTS.parent
KERNELS = PROJECT / "quant_assets" / "workers" / "gguf" / "kernels"
MINIMUM_PYTHON = (3, 11)
# The pins are resolved for Pythons before this one.
PINNED_BEFORE = (3, 14)
# Measured on Linux x86-64, in GB: an environment's disk use by torch build, including the build of
# llama.cpp; and the size of downloads.
NEEDED_GB = {
    "main": {"cpu": 2.5, "cuda": 6.5},
    "gptq": {"cpu": 1.5, "cuda": 5.5},
    "awq": {"cpu": 1.5, "cuda": 5.5},
}
TORCH_DOWNLOAD_GB = {"cpu": 0.2, "cuda": 2.7}
DOWNLOAD_GB = {"main": 0.4, "gptq": 0.2, "awq": 0.2}
# The least that an update of an environment needs.
UPDATE_GB = 0.5


def main() -> int:
    """Create or reuse one environment; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("environment", choices=sorted(NEEDED_GB))
    parser.add_argument(
        "--with", dest="extras", action="append", default=[], choices=["demo", "test", "live"]
    )
    parser.add_argument("--rebuild", action="store_true", help="rebuild llama-cpp-python")
    arguments = parser.parse_args()
    try:
        make_environment(arguments.environment, sorted(set(arguments.extras)), arguments.rebuild)
    except SetupError as error:
        print(f"set-up: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("set-up: stopped; run the command again to continue", file=sys.stderr)
        return 130
    return 0


def make_environment(name: str, extras: list[str], rebuild: bool) -> None:
    """Make the environment `name` match its pins."""
    _require_supported()
    if not rebuild and _Target(name, extras).is_made():
        return
    with turn(ENVIRONMENTS / ".lock", f"making the environment {name}"):
        # Another set-up may have finished it meanwhile.
        target = _Target(name, extras)
        if not rebuild and target.is_made():
            return
        with children_end_with_us():
            _make(target, rebuild)


class _Target:
    """One environment: its place, its wanted content, and its installed content as far as known."""

    def __init__(self, name: str, extras: list[str]) -> None:
        self.name = name
        self.folder = PROJECT / ".venv" if name == "main" else PROJECT / ".venvs" / name
        self.python = self.folder / "bin" / "python"
        self.uv = self.folder / "bin" / "uv"
        self.stamp = self.folder / "quant-assets.stamp"
        self.installed = _read_stamp(self.stamp)
        # Extras accumulate: `make test` must not remove what `make demo` installed.
        self.extras = sorted({*extras, *self.installed.get("extras", "").split()})
        self.pins = [ENVIRONMENTS / f"{part}.txt" for part in (name, *self.extras)]
        shared = [
            ENVIRONMENTS / f"{part}.txt"
            for part in ("torch", "cuda", "torch-cpu", "build", "installer")
        ]
        content = b"".join(path.read_bytes() for path in (*self.pins, *shared))
        self.wanted = {
            "pins": hashlib.sha256(content).hexdigest(),
            "python": platform.python_version(),
            "extras": " ".join(self.extras),
            "build": llama_build_key() if name == "main" else "",
            "kernels": _kernels_key() if name == "main" else "",
            "project": str(PROJECT),
        }

    def is_made(self) -> bool:
        """Whether a finished set-up installed everything that is wanted now."""
        held = {key: self.installed.get(key) for key in self.wanted}
        return (
            held == self.wanted
            and is_right(self.installed.get("torch", ""))
            and self.python.exists()
        )

    def is_usable(self) -> bool:
        """Whether a finished set-up with the same Python can be updated."""
        return self.python.exists() and self.installed.get("python") == self.wanted["python"]


def _require_supported() -> None:
    version = platform.python_version()
    if sys.version_info < MINIMUM_PYTHON:
        raise SetupError(
            f"Python {version} is too old: quant-assets needs Python 3.11 or "
            "newer; install one and run `make PYTHON=/path/to/python3.11 ...`."
        )
    if sys.version_info >= PINNED_BEFORE:
        raise SetupError(
            f"Python {version} is newer than the pinned packages support, which is Python 3.11 to "
            "3.13; install one of these and run `make PYTHON=/path/to/python3.13 ...`."
        )
    if sys.platform == "darwin" and platform.machine() == "x86_64":
        raise SetupError(
            "torch is no longer released for Intel Macs; use a Mac with Apple silicon, or Linux."
        )


def _make(target: _Target, rebuild: bool) -> None:
    name, folder = target.name, target.folder
    _require_space(target, wanted_build())
    _announce(target, rebuild)
    step = _Steps(5 if name == "main" else 3)
    usable = target.is_usable()
    # Until the new stamp is written the environment is incomplete, and would be recreated.
    target.stamp.unlink(missing_ok=True)
    step("the virtual environment and its installer; usually 10 s")
    if not usable:
        _create_venv(folder)
    run(
        [target.python, "-m", "pip", "install", "--quiet", "--no-deps", "--require-hashes",
         "--only-binary=:all:", "--requirement", ENVIRONMENTS / "installer.txt"],
        "The installer could not be installed",
    )  # fmt: skip
    if name != "main":
        build = _install_packages(target, step)
    else:
        with ThreadPoolExecutor(1) as background:
            wheel = background.submit(llama_wheel, target.uv, rebuild)
            try:
                build = _install_packages(target, step)
                step("llama.cpp: the rest of its build")
                built = wheel.result()
            except BaseException:
                stop_children()
                raise
        step("the project and its kernels; usually 20 s")
        _install_project(target, built, rebuild)
    lines = {**target.wanted, "torch": build}
    unfinished = target.stamp.with_suffix(".part")
    unfinished.write_text("".join(f"{key}={value}\n" for key, value in lines.items()))
    unfinished.replace(target.stamp)
    say(f"the environment {name} is ready after {step.elapsed()}")


class _Steps:
    """Announce each step with its number and the total."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.number = 0
        self.started = time.monotonic()

    def __call__(self, description: str) -> None:
        self.number += 1
        say(f"[{self.number}/{self.count}, after {self.elapsed()}] {description}")

    def elapsed(self) -> str:
        seconds = int(time.monotonic() - self.started)
        return f"{seconds // 60}:{seconds % 60:02d} min"


def _announce(target: _Target, rebuild: bool) -> None:
    build = wanted_build()
    fetched = TORCH_DOWNLOAD_GB[build] + DOWNLOAD_GB[target.name]
    say(
        f"making the environment {target.name} in {target.folder}: up to {fetched:.1f} GB to download, "
        f"{NEEDED_GB[target.name][build]:.1f} GB of disk, less if cached; "
        f"torch for {'NVIDIA GPUs' if build == 'cuda' else 'the CPU'}"
    )
    if target.name == "main" and (rebuild or not is_built()):
        compiler()  # fail before any download if there is none
        say("usually 3 to 7 minutes on two cores: downloads while llama.cpp is compiled")


def _install_packages(target: _Target, step: _Steps) -> str:
    """Install the pinned packages; return the build of torch."""
    install: list[str | Path] = [
        target.uv, "pip", "install", "--quiet", "--python", target.python, "--no-deps",
        "--require-hashes", "--build-constraints", ENVIRONMENTS / "build.txt",
        "--require-build-hashes",
    ]  # fmt: skip
    if os.environ.get("PIP_FIND_LINKS"):
        install += ["--find-links", os.environ["PIP_FIND_LINKS"]]
    if sys.dont_write_bytecode:
        # No bytecode would be cached later, and every worker would compile all that it imports.
        install.append("--compile-bytecode")
    step("torch; usually 20 s, with CUDA 2 to 5 minutes")
    build = install_torch(install, lambda build: _require_space(target, build))
    if build == "cpu" and target.installed.get("torch") != "cpu":
        run(
            [target.uv, "pip", "uninstall", "--quiet", "--python", target.python,
             "--requirement", ENVIRONMENTS / "cuda.txt"],
            "CUDA's packages could not be removed",
        )  # fmt: skip
    lines = "".join(path.read_text() for path in target.pins).splitlines()
    count = sum(not line.startswith(" ") for line in lines)
    step(f"{count} packages; usually 30 s")
    requirements = [part for path in target.pins for part in ("--requirement", path)]
    run([*install, *requirements], "The pinned packages could not be installed")
    return build


def _install_project(target: _Target, wheel: Path, rebuild: bool) -> None:
    """Install the wheel of llama-cpp-python and the project itself, which have no pins."""
    run(
        [target.uv, "pip", "install", "--quiet", "--python", target.python, "--no-deps",
         "--build-constraints", ENVIRONMENTS / "build.txt", "--require-build-hashes",
         *(["--reinstall"] if rebuild else []), wheel, "--editable", PROJECT],
        "The project could not be installed",
    )  # fmt: skip
    _build_kernels(target.python)


def _create_venv(folder: Path) -> None:
    try:
        # A link to an environment elsewhere is kept; venv would empty its target and then fail.
        venv.create(folder.resolve(), with_pip=True, clear=folder.exists(), symlinks=True)
    except (subprocess.CalledProcessError, ImportError) as error:
        raise SetupError(
            "Python cannot create virtual environments here; install its venv module (Debian and "
            "Ubuntu: `apt-get install python3-venv`) and run the command again."
        ) from error


def _read_stamp(stamp: Path) -> dict[str, str]:
    """The stamp of a finished set-up; empty if missing or damaged."""
    try:
        lines = stamp.read_text().splitlines()
        return dict(line.split("=", 1) for line in lines)
    except (OSError, ValueError):
        return {}


def _require_space(target: _Target, build: str) -> None:
    """Refuse an environment that does not fit on the disk; existing files are reused or removed."""
    free_gb = shutil.disk_usage(PROJECT).free / 1e9
    needed_gb = NEEDED_GB[target.name][build]
    missing_gb = max(needed_gb - _size_gb(target.folder), UPDATE_GB)
    if free_gb < missing_gb:
        raise SetupError(
            f"{PROJECT} has {free_gb:.1f} GB of free disk space and the environment {target.name} "
            f"needs {missing_gb:.1f} GB more; free some space and run the command again."
        )


def _size_gb(folder: Path) -> float:
    sizes = (
        (Path(parent) / name).lstat().st_blocks * 512
        for parent, _, names in os.walk(folder)
        for name in names
    )
    return sum(sizes) / 1e9


def _kernels_key() -> str:
    """A hash of the source and flags of the project's own kernels, without the processor."""
    files = (KERNELS / "k_quants.cpp", KERNELS / "build.py")
    return hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()[:16]


def _build_kernels(python: Path) -> None:
    """Compile the project's own kernels for the processors that llama.cpp is built for.

    Without them ggml's are used, so a failure is only reported.
    """
    portable = ["--portable"] if "GGML_NATIVE=OFF" in os.environ.get("CMAKE_ARGS", "") else []
    try:
        run(
            [python, "-m", "quant_assets.workers.gguf.kernels.build", compiler(), *portable],
            "The quantization kernels could not be compiled",
        )
    except SetupError as error:
        say(f"{error} Quantizing to K-quants will be slower.")


if __name__ == "__main__":
    sys.exit(main())
