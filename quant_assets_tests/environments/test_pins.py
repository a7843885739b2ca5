"""The pin files: complete for every supported machine, with a hash for every file."""

import os
import re
import subprocess
import sys
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from quant_assets.settings import PROJECT_ROOT

ENVIRONMENTS = PROJECT_ROOT / "environments"
UV = Path(sys.executable).with_name("uv")
PYTHONS = ("3.11", "3.12", "3.13")
LINUX = ("x86_64-manylinux_2_28", "aarch64-manylinux_2_28")
MACOS = "aarch64-apple-darwin"
# The combinations that `bootstrap.py` may install.
ENVIRONMENTS_OF = {
    "main": ("main", "test", "live", "llama-cpp"),
    "gptq": ("gptq",),
    "awq": ("awq",),
}
# These have no wheels; nothing else may need a build.
FROM_SOURCE = (
    "autoawq", "defuser", "device-smi", "gptqmodel", "llama-cpp-python", "logbar", "pypcre", "tokenicer",
)  # fmt: skip
CPU_TORCH_NEEDS = (
    "filelock", "typing-extensions>=4.10.0", "setuptools>=77.0.3", "sympy>=1.13.3", "networkx>=2.5.1",
    "jinja2", "fsspec>=0.8.5",
)  # fmt: skip


def entries(name: str) -> list[str]:
    return [
        line.removesuffix(" \\")
        for line in (ENVIRONMENTS / f"{name}.txt").read_text().splitlines()
        if not line.startswith(" ")
    ]


def resolve(files: list[str], python: str, platform: str, *options: str | Path) -> str | set[str]:
    """uv's resolution of the pins for one kind of machine, from metadata only; an error as text."""
    env = {name: value for name, value in os.environ.items() if name != "PIP_FIND_LINKS"}
    done = subprocess.run(
        [UV, "pip", "compile", "--quiet", "--no-annotate", "--no-header", "--python", sys.executable,
         "--python-version", python, "--python-platform", platform, "--only-binary", ":all:",
         *(f"--no-binary={name}" for name in FROM_SOURCE), *options, *files],
        cwd=ENVIRONMENTS, capture_output=True, text=True, timeout=300,
        env={**env, "MACOSX_DEPLOYMENT_TARGET": "14.0", "UV_PYTHON_DOWNLOADS": "never"},
    )  # fmt: skip
    if done.returncode != 0:
        return done.stderr
    return {line for line in done.stdout.splitlines() if "==" in line}


@pytest.fixture(scope="module")
def index() -> None:
    """Skip if no package index is reachable."""
    if not UV.exists():
        pytest.skip("uv is not in this environment: `make setup` puts it there")
    done = subprocess.run(
        [UV, "pip", "compile", "--quiet", "--no-deps", "--no-cache", "--no-header", "-"],
        input="iniconfig", capture_output=True, text=True, env={**os.environ, "UV_HTTP_RETRIES": "0"},
    )  # fmt: skip
    if done.returncode != 0:
        pytest.skip(f"the package index is unreachable: {done.stderr.strip().splitlines()[-1]}")


def unmet(name: str, python: str, platform: str, torch: list[str], *options: str | Path) -> str:
    """Problems of an environment on one kind of machine; empty if there are none."""
    files = [*ENVIRONMENTS_OF[name], *torch]
    resolved = resolve([f"{file}.txt" for file in files], python, platform, *options)
    if isinstance(resolved, str):
        return f"{name}, Python {python}, {platform}: {resolved}"
    pinned = {
        pin.partition(" ;")[0]
        for file in files
        for pin in entries(file)
        if platform != MACOS or "linux" not in pin
    }
    if resolved != pinned:
        return f"{name}, Python {python}, {platform}: {sorted(resolved ^ pinned)}"
    return ""


@pytest.mark.usefixtures("index")
def test_pins_are_complete_for_every_python_and_platform_with_torch_from_the_index():
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        cells = [
            threads.submit(unmet, name, python, platform, ["torch", "cuda"])
            for name in ENVIRONMENTS_OF
            for python in PYTHONS
            for platform in (*LINUX, MACOS)
        ]
    assert [cell.result() for cell in cells if cell.result()] == []


@pytest.mark.usefixtures("index")
def test_pins_are_complete_with_a_cpu_build_of_torch(tmp_path: Path):
    """The CPU build has the dependencies of the index's build, except CUDA and triton."""
    wheel = tmp_path / "torch-2.13.0+cpu-py3-none-any.whl"
    metadata = ["Metadata-Version: 2.1", "Name: torch", "Version: 2.13.0+cpu"]
    metadata += [f"Requires-Dist: {need}" for need in CPU_TORCH_NEEDS]
    with zipfile.ZipFile(wheel, "w") as archive:
        folder = "torch-2.13.0+cpu.dist-info"
        archive.writestr(f"{folder}/METADATA", "\n".join(metadata) + "\n")
        archive.writestr(f"{folder}/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        archive.writestr(f"{folder}/RECORD", "")
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        cells = [
            threads.submit(
                unmet, name, python, LINUX[0], ["torch-cpu"], "--find-links", tmp_path,
            )
            for name in ENVIRONMENTS_OF
            for python in PYTHONS
        ]  # fmt: skip
    assert [cell.result() for cell in cells if cell.result()] == []


@pytest.mark.parametrize("path", sorted(ENVIRONMENTS.glob("*.txt")), ids=lambda path: path.stem)
def test_every_pin_is_one_version_with_hashes_and_names_no_index(path: Path):
    text = path.read_text()
    assert "://" not in text
    for entry in text.replace(" \\\n", "").splitlines():
        assert re.fullmatch(
            r"[a-z0-9.-]+==[^\s;]+( ; sys_platform == 'linux')?(    --hash=sha256:[0-9a-f]{64})+",
            entry,
        ), entry


def test_shared_packages_have_one_version():
    """Packages of the same environment are pinned once."""
    for files in ENVIRONMENTS_OF.values():
        names = [
            pin.partition("==")[0] for file in (*files, "torch", "cuda") for pin in entries(file)
        ]
        assert len(names) == len(set(names))


def test_every_torch_is_the_same_release():
    (index_build,), (cpu_build,) = entries("torch"), entries("torch-cpu")
    assert cpu_build.partition(" ;")[0] == f"{index_build}+cpu"
