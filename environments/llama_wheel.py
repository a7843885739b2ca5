"""The llama-cpp-python wheel for this machine: built from source once and cached.

The caches of pip and uv are not used: they may hold a build with other flags.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import subprocess
import venv
from pathlib import Path

from steps import SetupError, run, say
from turns import turn

ENVIRONMENTS = Path(__file__).resolve().parent
PINS = ENVIRONMENTS / "llama-cpp.txt"
BUILD_PINS = ENVIRONMENTS / "build.txt"
WITHOUT_COMMON = ENVIRONMENTS / "llama-cpp.cmake"
# llama.cpp's AMX kernels crash on the first quantized matrix product (llama.cpp issue 20824).
NO_AMX = ("-mno-amx-tile", "-mno-amx-int8", "-mno-amx-bf16")


def llama_wheel(uv: Path, rebuild: bool) -> Path:
    """The wheel from the cache, or built with the build tools that `uv` installs.

    Concurrent set-ups build the same wheel only once. Raises `SetupError`.
    """
    folder = _cache() / "wheels" / build_key()
    if not rebuild and (built := _built(folder)):
        return built
    with turn(folder.with_name(f"{folder.name}.lock"), "building llama.cpp"):
        if not rebuild and (built := _built(folder)):
            return built
        say("building llama.cpp during the downloads, once per machine; usually 2 to 5 minutes")
        staging = folder.with_name(f"{folder.name}.part")
        shutil.rmtree(staging, ignore_errors=True)
        _build(uv, staging)
        shutil.rmtree(folder, ignore_errors=True)
        (staging / "wheel").rename(folder)
        shutil.rmtree(staging, ignore_errors=True)
        return next(folder.glob("llama_cpp_python-*.whl"))


def is_built() -> bool:
    """Whether the wheel is already in the cache."""
    return _built(_cache() / "wheels" / build_key()) is not None


def build_key() -> str:
    """A hash of what a build of llama.cpp depends on: source, flags and processor."""
    cpuinfo = Path("/proc/cpuinfo")
    processor = platform.processor() + platform.machine()
    if cpuinfo.exists():
        processor += next(
            (
                line
                for line in cpuinfo.read_text().splitlines()
                if line.startswith(("flags", "Feat"))
            ),
            "",
        )
    files = (PINS.read_text(), WITHOUT_COMMON.read_text())
    parts = (*files, os.environ.get("CMAKE_ARGS", ""), processor, platform.system())
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def compiler() -> str:
    """The C++ compiler; raises `SetupError` if there is none."""
    for candidate in (os.environ.get("CXX"), "c++", "g++", "clang++"):
        if candidate and shutil.which(candidate):
            return candidate
    raise SetupError(
        "No C++ compiler was found, and llama.cpp is built from source; install one "
        "(Debian and Ubuntu: `apt-get install g++`, Fedora: `dnf install gcc-c++`, macOS: "
        "`xcode-select --install`) and run the command again."
    )


def cmake_args(compiler: str) -> str:
    """Flags for a native build of only the libraries, without AMX; CMAKE_ARGS may add to them."""
    probe = [compiler, *NO_AMX, "-x", "c++", "-E", os.devnull, "-o", os.devnull]
    flags = " ".join(NO_AMX) if subprocess.run(probe, capture_output=True).returncode == 0 else ""
    languages = f" -DCMAKE_C_FLAGS='{flags}' -DCMAKE_CXX_FLAGS='{flags}'" if flags else ""
    include = f"-DCMAKE_PROJECT_llama_cpp_INCLUDE='{WITHOUT_COMMON}'"
    extra = os.environ.get("CMAKE_ARGS", "")
    return f"-DGGML_NATIVE=ON -DLLAVA_BUILD=OFF {include}{languages} {extra}".strip()


def _build(uv: Path, staging: Path) -> None:
    """Build the wheel into `staging`/wheel; tools and source are pinned by hash."""
    failure = "llama.cpp could not be built"
    arguments = cmake_args(compiler())
    tools = staging / "tools"
    venv.create(tools, with_pip=True, symlinks=True)
    python = tools / "bin" / "python"
    run(
        [uv, "pip", "install", "--quiet", "--python", python, "--no-deps", "--require-hashes",
         "--requirement", BUILD_PINS],
        failure,
    )  # fmt: skip
    run(
        [python, "-m", "pip", "wheel", "--quiet", "--no-cache-dir", "--no-deps",
         "--no-build-isolation", "--require-hashes", "--wheel-dir", staging / "wheel",
         "--requirement", PINS],
        failure,
        {**os.environ, "CMAKE_ARGS": arguments, "PATH": f"{tools / 'bin'}:{os.environ['PATH']}"},
    )  # fmt: skip


def _built(folder: Path) -> Path | None:
    return next(iter(sorted(folder.glob("llama_cpp_python-*.whl"))), None)


def _cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "quant-assets"
