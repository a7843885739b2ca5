"""SC-001: a 7B model to Q4_K_M within 30 minutes and 16 GB of memory, without a GPU."""

import math
import os
import shutil
import sys
import time
from pathlib import Path
from typing import Final

from criterion import DEMANDS, Criterion, Row
from gguf_one_pass import SHAPES, make_llama, measure, tensor_sizes
from memory_limit import MemoryLimit, memory_limit

from quant_assets.errors import ResourceError
from quant_assets.host.conditions import cpu_name

LEVEL: Final = "Q4_K_M"
LIMIT_S: Final = 30 * 60
LEAST_7B_PARAMETERS: Final = 6.5e9
MEMORY_LIMIT_BYTES: Final = 16 * 10**9
_OUTPUT_SHARE = 0.31  # Q4_K_M over bfloat16
_SPARE_BYTES = 200_000_000


def measure_seven_b(
    folder: Path,
    *,
    shape: str = "llama-7b",
    threads: int,
    limit_bytes: int = MEMORY_LIMIT_BYTES,
) -> Criterion:
    """Quantize a model of `shape` by the CLI within a memory limit.

    The model is made in `folder` and removed again. Raises `ResourceError` when the disk has too
    little space for it.
    """
    n_parameters = sum(map(math.prod, tensor_sizes(SHAPES[shape]).values()))
    source_bytes = 2 * n_parameters
    _check_disk(folder, int(source_bytes * (1 + _OUTPUT_SHARE)) + _SPARE_BYTES)
    source, output = folder / shape, folder / "quantized"
    try:
        make_llama(source, SHAPES[shape])
        _forget(source)
        command: list[str | Path] = [
            "env", f"QUANT_ASSETS_HOME={folder / 'home'}", "CUDA_VISIBLE_DEVICES=",
            Path(sys.executable).with_name("quant-assets"), "quantize", source, "--to", "gguf",
            "--level", LEVEL, "--threads", str(threads), "--output-dir", output,
        ]  # fmt: skip
        with memory_limit(limit_bytes) as limit:
            row: Row = {
                "model": shape,
                "parameters (10^9)": n_parameters / 1e9,
                "level": LEVEL,
                "threads": threads,
                "processor": cpu_name(),
                "memory limit (GB)": limit_bytes / 1e9,
                "limit set by": limit.mechanism or "nothing: no cgroup can be made here",
                **_run(command, limit),
            }
        written = sum(path.stat().st_size for path in output.glob("*.gguf"))
        row["source (GB)"], row["file (GB)"] = source_bytes / 1e9, written / 1e9
    finally:
        for made in (source, output):
            shutil.rmtree(made, ignore_errors=True)
    return _criterion(row, n_parameters)


def _check_disk(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise ResourceError(
            "The disk has too little space for the 7B model of SC-001.",
            f"The model and its file need {needed / 1e9:.1f} GB; {folder} has {free / 1e9:.1f} GB.",
            "Free some space, or name a folder on another disk with --folder.",
        )


def _forget(source: Path) -> None:
    """Drop the model from the page cache, so that it is read from the disk as a user's is."""
    if not hasattr(os, "posix_fadvise"):
        return
    for shard in source.glob("*.safetensors"):
        with shard.open("rb") as stream:
            os.fsync(stream.fileno())
            os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _run(command: list[str | Path], limit: MemoryLimit) -> Row:
    started = time.perf_counter()
    try:
        run = measure(limit.wrapped(command))
    except RuntimeError as error:
        kills = limit.kills()
        killed = f"{kills} processes killed at the memory limit; " if kills else ""
        return {
            "completed": False,
            "wall (s)": time.perf_counter() - started,
            "failure": killed + str(error).strip(),
        }
    cgroup_peak = limit.peak_bytes()
    return {
        "completed": True,
        "wall (s)": run.wall_s,
        "processor time (s)": run.cpu_s,
        "load average at the end": os.getloadavg()[0],
        "peak of own memory (GB)": run.peak_own_bytes / 1e9,
        "peak of the cgroup with page cache (GB)": (
            None if cgroup_peak is None else cgroup_peak / 1e9
        ),
    }


def _criterion(row: Row, n_parameters: int) -> Criterion:
    wall, own = row["wall (s)"], row.get("peak of own memory (GB)")
    limit_gb = row["memory limit (GB)"]
    assert isinstance(wall, float) and isinstance(limit_gb, float)
    limited = not str(row["limit set by"]).startswith("nothing")
    how = (
        f"`quant-assets quantize --level {LEVEL}` of random bfloat16 weights in the shape "
        f"{row['model']}, {row['threads']} threads, {row['processor']}, no GPU; the file is loaded "
        "and generates a token; "
        + (
            f"memory limited to {limit_gb:g} GB by {row['limit set by']}, without swap"
            if limited
            else "memory not limited, because no cgroup can be made here; its peak is measured"
        )
    )
    if not row["completed"]:
        met, measured = False, f"failed after {wall / 60:.1f} min: {row['failure']}"
    else:
        assert isinstance(own, float)
        met = wall < LIMIT_S and own <= MEMORY_LIMIT_BYTES / 1e9
        measured = f"{wall:.0f} s; at most {own:.2f} GB of own memory"
    if n_parameters < LEAST_7B_PARAMETERS:
        return Criterion(
            id="SC-001", demand=DEMANDS["SC-001"], how=how, met=None, details=[row],
            measured=f"no 7B model was measured, but {row['model']}: {measured}",
        )  # fmt: skip
    return Criterion(
        id="SC-001", demand=DEMANDS["SC-001"], measured=measured, how=how, met=met, details=[row]
    )
