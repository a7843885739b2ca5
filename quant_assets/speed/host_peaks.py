"""Peak bandwidth and arithmetic throughput of this host, measured in a worker and kept as files.

The marts state measured runs as a share of the roofline that follows from them.
"""

import datetime
import re
from pathlib import Path

from pydantic import BaseModel, ConfigDict, PositiveInt, TypeAdapter
from tenacity import RetryCallState, Retrying, retry_if_result, stop_after_attempt, wait_fixed

from quant_assets.bench.subject import machine_lock
from quant_assets.host.conditions import wait_until_quiet
from quant_assets.host.identity import host_id
from quant_assets.processes.session import UNATTENDED, WorkerSession
from quant_assets.processes.supervisor import run_worker
from quant_assets.record_files import Count, UtcTime, read_record, recency, write_record

ATTEMPTS = 3
"""Measurements of the peaks, until one is not contended."""
QUIET_WAIT_S = 20.0
"""Longest wait for a quiet machine between two of them."""

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
    """Peaks with the time of their measurement, the machine's id and the number of attempts.

    Contended peaks are the highest of all attempts: other load only lowers them. Null: an older
    record.
    """

    measured_at: UtcTime
    host_id: str | None = None
    attempts: Count = 1


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

    While other load contends, the measurement is repeated when the machine is quiet, up to
    `ATTEMPTS` times. If all are contended, the newest uncontended record of this processor and
    thread count stands, of this machine rather than another, and is returned; without one, the
    contended peaks are kept. An attempt takes about ten seconds and 1 GB of memory. Raises
    `WorkerError` when the worker dies.
    """
    measured: list[HostPeaks] = []

    def measure() -> HostPeaks:
        with machine_lock(locks):
            peaks = run_worker(
                "torch.host_peaks", job or HostPeaksJob(threads=threads), HostPeaks, session=session
            )
        measured.append(peaks)
        return peaks

    def wait(longest_s: float) -> None:
        wait_until_quiet(longest_s)

    def highest(_: RetryCallState) -> HostPeaks:
        return measured[-1].model_copy(
            update={
                name: max(getattr(peaks, name) for peaks in measured)
                for name in ("triad_gb_s", "read_gb_s", "matmul_gflop_s")
            }
        )

    peaks: HostPeaks = Retrying(
        retry=retry_if_result(lambda found: found.contended),
        stop=stop_after_attempt(ATTEMPTS),
        wait=wait_fixed(QUIET_WAIT_S),
        sleep=wait,
        retry_error_callback=highest,
    )(measure)
    recorded = RecordedPeaks(
        **peaks.model_dump(),
        measured_at=datetime.datetime.now(datetime.UTC),
        host_id=host_id(),
        attempts=len(measured),
    )
    if recorded.contended:
        earlier = uncontended_peaks(results, recorded.cpu_name, threads, host_id())
        if earlier is not None:
            return earlier
    name = re.sub(r"[^a-z0-9]+", "-", (recorded.cpu_name or "cpu").casefold()).strip("-")
    stamp = recorded.measured_at.strftime("%Y%m%dT%H%M%SZ")
    write_record(
        results / _FOLDER / f"{name}_{recorded.threads}_{stamp}.json",
        recorded.model_dump_json(indent=2),
        "host peaks",
    )
    return recorded


def uncontended_peaks(
    results: Path, processor: str | None, threads: int, machine: str
) -> RecordedPeaks | None:
    """The newest uncontended record of a processor and thread count, if there is any.

    Those of `machine`, a host id, come before those of other machines with the same processor.
    Raises `InputError` naming a damaged file.
    """
    found = [
        peaks
        for peaks in recorded_peaks(results)
        if not peaks.contended and (peaks.cpu_name, peaks.threads) == (processor, threads)
    ]
    own = [peaks for peaks in found if peaks.host_id == machine]
    candidates = own or found
    return candidates[-1] if candidates else None


def recorded_peaks(results: Path) -> list[RecordedPeaks]:
    """All recorded peaks, the newest by `recency` last; raise `InputError` naming a damaged file."""
    found = []
    for path in sorted((results / _FOLDER).glob("*.json")):
        found.append(
            read_record(path, _PEAKS, "host peaks", "Remove the file and measure them again.")
        )
    return sorted(found, key=lambda peaks: recency(peaks.measured_at))
