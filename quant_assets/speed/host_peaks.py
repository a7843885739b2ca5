"""Peak bandwidth and arithmetic throughput of this host, measured in a worker and kept as files.

The speed model compares CPU runs with them.
"""

import datetime
import re
from pathlib import Path

from pydantic import BaseModel, ConfigDict, PositiveInt, TypeAdapter

from quant_assets.bench.subject import machine_lock
from quant_assets.processes.session import UNATTENDED, WorkerSession
from quant_assets.processes.supervisor import run_worker
from quant_assets.record_files import Count, UtcTime, read_record, recency, write_record

_FOLDER = "hosts"


class HostPeaksJob(BaseModel):
    """Threads, sizes and repetitions of the measurement."""

    model_config = ConfigDict(frozen=True)

    threads: PositiveInt
    array_bytes: PositiveInt = 256 * 2**20
    matrix_size: PositiveInt = 2048
    repetitions: PositiveInt = 10


class HostPeaks(BaseModel):
    """Peaks of one processor at a thread count. GB are 10^9 bytes, GFLOP 10^9 operations.

    `contended`: other processes were busy meanwhile, so the true peaks may be higher.
    """

    cpu_name: str | None
    threads: Count
    triad_gb_s: float
    read_gb_s: float
    matmul_gflop_s: float
    contended: bool
    library_versions: dict[str, str]


class RecordedPeaks(HostPeaks):
    """Peaks with the time of their measurement."""

    measured_at: UtcTime


_PEAKS = TypeAdapter(RecordedPeaks)


def measure_host_peaks(
    results: Path,
    threads: int,
    *,
    job: HostPeaksJob | None = None,
    session: WorkerSession = UNATTENDED,
    locks: Path | None = None,
) -> RecordedPeaks:
    """Measure this host's peaks with the machine to itself, and keep them under `results`.

    Takes about ten seconds and 1 GB of memory. Raises `WorkerError` when the worker dies.
    """
    with machine_lock(locks):
        peaks = run_worker(
            "torch.host_peaks", job or HostPeaksJob(threads=threads), HostPeaks, session=session
        )
    recorded = RecordedPeaks(**peaks.model_dump(), measured_at=datetime.datetime.now(datetime.UTC))
    name = re.sub(r"[^a-z0-9]+", "-", (recorded.cpu_name or "cpu").casefold()).strip("-")
    stamp = recorded.measured_at.strftime("%Y%m%dT%H%M%SZ")
    write_record(
        results / _FOLDER / f"{name}_{recorded.threads}_{stamp}.json",
        recorded.model_dump_json(indent=2),
        "host peaks",
    )
    return recorded


def recorded_peaks(results: Path) -> list[RecordedPeaks]:
    """All recorded peaks, the newest by `recency` last; raise `InputError` naming a damaged file."""
    found = []
    for path in sorted((results / _FOLDER).glob("*.json")):
        found.append(
            read_record(path, _PEAKS, "host peaks", "Remove the file and measure them again.")
        )
    return sorted(found, key=lambda peaks: recency(peaks.measured_at))
