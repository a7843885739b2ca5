"""Compile the kernels: `python -m quant_assets.workers.gguf.kernels.build c++ [--portable]`.

The library is stored in this Python environment under a name derived from its source, flags and
processor, so that a library built for others is never loaded. Standard library only.
"""

import argparse
import hashlib
import os
import platform
import subprocess
import sys
from pathlib import Path

SOURCE = Path(__file__).with_name("k_quants.cpp")
FOLDER = Path(sys.prefix) / "lib" / "quant-assets"
# No contraction: fused operations round once where ggml rounds twice.
FLAGS = (
    "-std=c++17",
    "-O3",
    "-ffp-contract=off",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-fvisibility=hidden",
    "-fPIC",
    "-shared",
)
NATIVE = "-march=native"


def library_path(*, native: bool, source: Path = SOURCE, folder: Path = FOLDER) -> Path:
    """Path of the library of `source`, for this processor only (`native`) or its whole family."""
    parts = [*FLAGS, platform.system(), platform.machine()]
    if native:
        parts += [NATIVE, _processor()]
    digest = hashlib.sha256(source.read_bytes() + "\n".join(parts).encode()).hexdigest()
    return folder / f"{source.stem}-{digest[:16]}.so"


def _processor() -> str:
    """This processor's feature flags on Linux; elsewhere its name."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text(encoding="utf-8").splitlines():
            if line.startswith(("flags", "Feat")):
                return line
    return platform.processor()


def build(compiler: str, *, native: bool, source: Path = SOURCE, folder: Path = FOLDER) -> Path:
    """Compile `source` unless its library exists; returns the library's path.

    Raises `subprocess.CalledProcessError` with the compiler's output, or `OSError`.
    """
    path = library_path(native=native, source=source, folder=folder)
    if path.exists():
        return path
    folder.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(f".{os.getpid()}.part")
    try:
        subprocess.run(
            [compiler, *FLAGS, *([NATIVE] if native else []), "-o", unfinished, source],
            check=True,
            capture_output=True,
            text=True,
        )
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)
    return path


def main() -> int:
    """Build the library; returns 1 as the exit status on failure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("compiler")
    parser.add_argument(
        "--portable", action="store_true", help="run on any processor of the family"
    )
    arguments = parser.parse_args()
    try:
        build(arguments.compiler, native=not arguments.portable)
    except subprocess.CalledProcessError as error:
        print(error.stderr, file=sys.stderr)
        return 1
    except OSError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
