"""Contention on the host while a cell is measured.

Load average, steal and the processor time of other processes come from the kernel's counters, the
processes on the GPU from `nvidia-smi`. The load average is recorded but not decisive: it still
reflects the previous cell.
"""

import os
import platform
import shutil
import subprocess
import time
from pathlib import Path
from typing import NamedTuple

import psutil
from pydantic import BaseModel

BEFORE_INTERVAL_S = 0.5
# An idle desktop or server stays below this; one busy process counts 1.0.
OTHERS_BUSY_CORES_LIMIT = 0.2
STEAL_FRACTION_LIMIT = 0.02

_GOVERNOR = Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")


class HostConditions(BaseModel):
    """Other load on the host, before and while a cell was measured; null if not readable.

    `others_busy_cores` is the processor time of all other processes over wall time (1.0 is one
    core), the higher value of before and during the runs; `steal_fraction` is the share of all
    processor time that the hypervisor gave to other guests.
    """

    load_average_1m: float | None
    others_busy_cores: float | None
    steal_fraction: float | None
    governor: str | None
    gpu_processes: list[str]
    contended: bool
    reasons: list[str]


class _Counters(NamedTuple):
    wall_s: float
    busy_s: float
    steal_s: float
    total_s: float
    own_s: float


def _read_counters() -> _Counters:
    times = psutil.cpu_times()._asdict()
    # Linux counts guest time inside user time.
    total = sum(value for name, value in times.items() if not name.startswith("guest"))
    steal = times.get("steal", 0.0)
    idle = times["idle"] + times.get("iowait", 0.0)
    own = psutil.Process().cpu_times()
    return _Counters(
        wall_s=time.monotonic(),
        busy_s=total - idle - steal,
        steal_s=steal,
        total_s=total,
        own_s=own.user + own.system,
    )


def _others(start: _Counters, end: _Counters) -> tuple[float, float] | None:
    """(cores kept busy by others, fraction stolen) between two readings."""
    wall, total = end.wall_s - start.wall_s, end.total_s - start.total_s
    if wall <= 0 or total <= 0:
        return None
    others = (end.busy_s - start.busy_s) - (end.own_s - start.own_s)
    return max(0.0, others / wall), max(0.0, (end.steal_s - start.steal_s) / total)


def gpu_processes() -> list[str]:
    """Other compute processes on the GPUs of this machine, as `pid, name, MiB`."""
    lines = nvidia_smi("--query-compute-apps=pid,process_name,used_memory")
    own = str(os.getpid())
    return [line for line in lines if line.split(",")[0].strip() != own]


def nvidia_smi(query: str) -> list[str]:
    """The output lines of an `nvidia-smi` query; none without an NVIDIA driver."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return []
    try:
        answer = subprocess.run(
            [program, query, "--format=csv,noheader,nounits"],
            capture_output=True,
            text=True,
            timeout=20,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return []
    return [line.strip() for line in answer.stdout.splitlines() if line.strip()]


def gpu_name() -> str | None:
    """The first NVIDIA GPU's name."""
    names = nvidia_smi("--query-gpu=name")
    return names[0] if names else None


def cpu_name() -> str | None:
    """The processor's model name."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or None


def wait_until_quiet(limit_s: float) -> bool:
    """Wait until other load on the processor is within its limits, at most `limit_s` seconds.

    Returns whether it is, by readings over `BEFORE_INTERVAL_S` seconds each.
    """
    deadline = time.monotonic() + limit_s
    start = _read_counters()
    while True:
        time.sleep(BEFORE_INTERVAL_S)
        end = _read_counters()
        reading = _others(start, end)
        if (
            reading is not None
            and reading[0] <= OTHERS_BUSY_CORES_LIMIT
            and reading[1] <= STEAL_FRACTION_LIMIT
        ):
            return True
        if time.monotonic() >= deadline:
            return False
        start = end


class HostWatch:
    """Watches the host from its creation until `finish`.

    Creation blocks for `BEFORE_INTERVAL_S` seconds to measure the idle host.
    """

    def __init__(self) -> None:
        start = _read_counters()
        time.sleep(BEFORE_INTERVAL_S)
        self._start = _read_counters()
        self._before = _others(start, self._start)
        self._gpu_before = gpu_processes()

    def finish(self) -> HostConditions:
        """The host's conditions since creation."""
        during = _others(self._start, _read_counters())
        seen = [reading for reading in (self._before, during) if reading is not None]
        others = max((reading[0] for reading in seen), default=None)
        steal = max((reading[1] for reading in seen), default=None)
        on_gpu = sorted({*self._gpu_before, *gpu_processes()})
        return host_conditions(
            load_average_1m=os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
            others_busy_cores=others,
            steal_fraction=steal,
            governor=_GOVERNOR.read_text(encoding="ascii").strip() if _GOVERNOR.exists() else None,
            gpu_processes=on_gpu,
        )


def host_conditions(
    *,
    load_average_1m: float | None,
    others_busy_cores: float | None,
    steal_fraction: float | None,
    governor: str | None,
    gpu_processes: list[str],
) -> HostConditions:
    """Conditions with their verdict: `contended`, and the reasons, if a reading is over its limit."""
    reasons = []
    if others_busy_cores is not None and others_busy_cores > OTHERS_BUSY_CORES_LIMIT:
        reasons.append(f"other processes kept {others_busy_cores:.2f} cores busy")
    if steal_fraction is not None and steal_fraction > STEAL_FRACTION_LIMIT:
        reasons.append(f"the hypervisor took {steal_fraction:.1%} of the processor time")
    if gpu_processes:
        reasons.append(f"other processes were on the GPU: {'; '.join(gpu_processes)}")
    return HostConditions(
        load_average_1m=load_average_1m,
        others_busy_cores=others_busy_cores,
        steal_fraction=steal_fraction,
        governor=governor,
        gpu_processes=gpu_processes,
        contended=bool(reasons),
        reasons=reasons,
    )
