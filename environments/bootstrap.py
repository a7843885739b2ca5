"""Make the project's Python environments: `python3 environments/bootstrap.py main --with demo`.

Needs Python 3.11 or newer and the standard library only. An environment that is already as its
pins say is left alone, within a fraction of a second. llama-cpp-python is built from its source
once a machine and kept under the user's cache folder.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import venv
from pathlib import Path

ENVIRONMENTS = Path(__file__).resolve().parent
PROJECT = ENVIRONMENTS.parent
UV_VERSION = "0.13.8"
LLAMA_CPP_PYTHON = "llama-cpp-python==0.3.36"
KERNELS = PROJECT / "quant_assets" / "workers" / "gguf" / "kernels"
MINIMUM_PYTHON = (3, 11)
# Measured: the main environment takes 1.6 GB with CPU wheels, its downloads and the build 2 GB more.
NEEDED_GB = {"main": 5.0, "gptq": 3.0, "awq": 3.0}
# llama.cpp's AMX kernels crash on the first quantized matrix product (llama.cpp issue 20824).
NO_AMX = ("-mno-amx-tile", "-mno-amx-int8", "-mno-amx-bf16")


class SetupError(Exception):
    """Set-up cannot go on; the message is one sentence that says why and what to do."""


def main() -> int:
    """Make or reuse one environment; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("environment", choices=sorted(NEEDED_GB))
    parser.add_argument(
        "--with", dest="extras", action="append", default=[], choices=["demo", "test", "live"]
    )
    parser.add_argument("--rebuild", action="store_true", help="build llama-cpp-python anew")
    arguments = parser.parse_args()
    try:
        make_environment(arguments.environment, sorted(set(arguments.extras)), arguments.rebuild)
    except SetupError as error:
        print(f"set-up: {error}", file=sys.stderr)
        return 1
    return 0


def make_environment(name: str, extras: list[str], rebuild: bool) -> None:
    """Bring the environment `name` to what its pins say."""
    if sys.version_info < MINIMUM_PYTHON:
        raise SetupError(
            f"Python {platform.python_version()} is too old: quant-assets needs Python 3.11 or "
            "newer; install one and run `make PYTHON=/path/to/python3.11 ...`."
        )
    folder = PROJECT / ".venv" if name == "main" else PROJECT / ".venvs" / name
    stamp = folder / "quant-assets.stamp"
    installed = _read_stamp(stamp)
    # Extras add up: `make test` must not take away what `make demo` installed.
    extras = sorted({*extras, *installed.get("extras", "").split()})
    pins = [ENVIRONMENTS / f"{part}.txt" for part in (name, *extras)]
    wanted = {
        "pins": hashlib.sha256(b"".join(path.read_bytes() for path in pins)).hexdigest(),
        "python": platform.python_version(),
        "extras": " ".join(extras),
        "build": _build_key() if name == "main" else "",
        "kernels": _kernels_key() if name == "main" else "",
        "project": str(PROJECT),
    }
    python = folder / "bin" / "python"
    if installed == wanted and python.exists() and not rebuild:
        return
    _require_space(name, folder)
    print(f"set-up: making the environment {name} in {folder}", file=sys.stderr)
    stamp.unlink(missing_ok=True)
    if not python.exists() or installed.get("python") != wanted["python"]:
        _create_venv(folder)
    _run(
        [python, "-m", "pip", "install", "--quiet", f"uv=={UV_VERSION}"],
        "The installer could not be installed",
    )
    uv_install: list[str | Path] = [
        folder / "bin" / "uv",
        "pip",
        "install",
        "--quiet",
        "--python",
        python,
    ]
    if os.environ.get("PIP_FIND_LINKS"):
        uv_install += ["--find-links", os.environ["PIP_FIND_LINKS"]]
    if sys.dont_write_bytecode:
        # Nothing would ever be compiled later, and every worker would compile all that it imports.
        uv_install.append("--compile-bytecode")
    # The package with the demo's model asks for packages that only its own command needs.
    alone = [path for path in pins if path.stem == "demo"]
    for options, files in (([], [p for p in pins if p not in alone]), (["--no-deps"], alone)):
        requirements: list[str | Path] = [
            argument for path in files for argument in ("--requirement", path)
        ]
        if requirements:
            _run(
                [*uv_install, *options, *requirements],
                "The pinned packages could not be installed",
            )
    if name == "main":
        wheel = _llama_wheel(python, rebuild)
        reinstall = ["--reinstall"] if rebuild else []
        _run(
            [*uv_install, "--no-deps", *reinstall, wheel, "--editable", PROJECT],
            "The project could not be installed",
        )
        _build_kernels(python)
    stamp.write_text("".join(f"{key}={value}\n" for key, value in wanted.items()))


def _create_venv(folder: Path) -> None:
    try:
        # A link to an environment elsewhere is kept; venv would empty it and then fail.
        venv.create(folder.resolve(), with_pip=True, clear=folder.exists(), symlinks=True)
    except (subprocess.CalledProcessError, ImportError) as error:
        raise SetupError(
            "Python cannot make virtual environments here; install its venv module (Debian and "
            "Ubuntu: `apt-get install python3-venv`) and run the command again."
        ) from error


def _read_stamp(stamp: Path) -> dict[str, str]:
    if not stamp.exists():
        return {}
    return dict(line.split("=", 1) for line in stamp.read_text().splitlines())


def _require_space(name: str, folder: Path) -> None:
    free_gb = shutil.disk_usage(PROJECT).free / 1e9
    needed_gb = NEEDED_GB[name]
    if free_gb < needed_gb and not folder.exists():
        raise SetupError(
            f"{PROJECT} has {free_gb:.1f} GB of free disk space and the environment {name} needs "
            f"about {needed_gb:.0f} GB; free some space and run the command again."
        )


def _compiler() -> str:
    for candidate in (os.environ.get("CXX"), "c++", "g++", "clang++"):
        if candidate and shutil.which(candidate):
            return candidate
    raise SetupError(
        "No C++ compiler was found, and llama.cpp is built from its source; install one "
        "(Debian and Ubuntu: `apt-get install g++`, Fedora: `dnf install gcc-c++`, macOS: "
        "`xcode-select --install`) and run the command again."
    )


def _cmake_args(compiler: str) -> str:
    """A native build without AMX, without the multimodal library; CMAKE_ARGS may add to it."""
    probe = [compiler, *NO_AMX, "-x", "c++", "-E", os.devnull, "-o", os.devnull]
    flags = " ".join(NO_AMX) if subprocess.run(probe, capture_output=True).returncode == 0 else ""
    languages = f" -DCMAKE_C_FLAGS='{flags}' -DCMAKE_CXX_FLAGS='{flags}'" if flags else ""
    extra = os.environ.get("CMAKE_ARGS", "")
    return f"-DGGML_NATIVE=ON -DLLAVA_BUILD=OFF{languages} {extra}".strip()


def _build_key() -> str:
    """What a build of llama.cpp depends on: version, flags and this machine's processor."""
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
    parts = (LLAMA_CPP_PYTHON, os.environ.get("CMAKE_ARGS", ""), processor, platform.system())
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def _llama_wheel(python: Path, rebuild: bool) -> Path:
    """The wheel of llama-cpp-python built for this machine, from the cache or from its source.

    The cache of pip or uv is not used: it may hold a build with other flags.
    """
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = cache / "quant-assets" / "wheels" / _build_key()
    if not rebuild and (built := sorted(folder.glob("llama_cpp_python-*.whl"))):
        return built[0]
    cmake_args = _cmake_args(_compiler())
    print("set-up: building llama.cpp, once; this takes 3 to 8 minutes", file=sys.stderr)
    staging = folder.with_name(f"{folder.name}.{os.getpid()}.part")
    shutil.rmtree(staging, ignore_errors=True)
    command: list[str | Path] = [
        python,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-cache-dir",
        "--no-deps",
    ]
    _run(
        [*command, "--wheel-dir", staging, LLAMA_CPP_PYTHON],
        "llama.cpp could not be built",
        {**os.environ, "CMAKE_ARGS": cmake_args},
    )
    shutil.rmtree(folder, ignore_errors=True)
    staging.rename(folder)
    return next(folder.glob("llama_cpp_python-*.whl"))


def _kernels_key() -> str:
    """What the project's own kernels depend on, the processor apart: their source and flags."""
    files = (KERNELS / "k_quants.cpp", KERNELS / "build.py")
    return hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()[:16]


def _build_kernels(python: Path) -> None:
    """Compile the project's own kernels for the processors that llama.cpp is built for.

    Without them ggml's are used, so a failure is said and no more.
    """
    portable = ["--portable"] if "GGML_NATIVE=OFF" in os.environ.get("CMAKE_ARGS", "") else []
    try:
        _run(
            [python, "-m", "quant_assets.workers.gguf.kernels.build", _compiler(), *portable],
            "The quantization kernels could not be compiled",
        )
    except SetupError as error:
        print(f"set-up: {error} Quantizing to K-quants will be slower.", file=sys.stderr)


_NETWORK_SIGNS = (
    "name resolution", "connection", "network", "timed out", "no matching distribution",
    "could not resolve", "dns error", "error sending request", "failed to fetch",
)  # fmt: skip
_DISK_SIGNS = ("no space left", "disk quota")
_LINES_SHOWN = 5


def _run(command: list[str | Path], failure: str, env: dict[str, str] | None = None) -> None:
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, env=env)
    if done.returncode == 0:
        return
    output = (done.stdout + done.stderr).strip()
    if any(sign in output.lower() for sign in _DISK_SIGNS):
        reason = "the disk is full; free some space and run the command again"
    elif any(sign in output.lower() for sign in _NETWORK_SIGNS):
        reason = "the package index was not reached; check the network and run the command again"
    else:
        reason = "its last lines are above"
    print("\n".join(output.splitlines()[-_LINES_SHOWN:]), file=sys.stderr)
    raise SetupError(f"{failure}: {reason}.")


if __name__ == "__main__":
    sys.exit(main())
