"""Memory of this process: resident, its own and on the GPU; now and at its peak."""

import contextlib
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import psutil
from pydantic import BaseModel

_STATUS = Path("/proc/self/status")
_GB = 1e9
_UNMEASURED = "not measured"

VramReader = Callable[[], tuple[int, int] | None]
"""Reads GPU memory of this process in bytes, now and at its peak; None where it is not measured."""


class MemoryUsage(BaseModel):
    """Memory of a process in bytes; null means not measured.

    `rss_bytes` is resident memory with mapped files, which the system can take back at any time.
    `own_bytes` is the part that it cannot take back: on Linux without files and shared pages,
    elsewhere the unique set size. The system records the peak of resident memory; `peak_own_bytes`
    is the largest sample. `vram_bytes` is the GPU memory that torch or llama.cpp reports.
    """

    rss_bytes: int
    peak_rss_bytes: int
    own_bytes: int | None = None
    peak_own_bytes: int | None = None
    vram_bytes: int | None = None
    peak_vram_bytes: int | None = None

    @property
    def text(self) -> str:
        """Current and peak memory in GB (10^9 bytes), for one line."""
        parts = [f"{_gb(self.rss_bytes)} now, {_gb(self.peak_rss_bytes)} peak"]
        if self.own_bytes is not None and self.peak_own_bytes is not None:
            parts.append(f"own {_gb(self.own_bytes)} now, {_gb(self.peak_own_bytes)} peak")
        if self.vram_bytes is not None and self.peak_vram_bytes is not None:
            parts.append(f"GPU {_gb(self.vram_bytes)} now, {_gb(self.peak_vram_bytes)} peak")
        return "; ".join(parts)

    @property
    def peaks_text(self) -> str:
        """Peak memory in GB (10^9 bytes), for one line; what was not measured is left out."""
        facts = peak_memory_facts(self.peak_rss_bytes, self.peak_own_bytes, self.peak_vram_bytes)
        return ", ".join(f"{name} {peak}" for name, peak in facts.items() if peak != _UNMEASURED)


def _gb(size: int) -> str:
    return f"{size / _GB:.2f} GB"


def peak_memory_facts(
    peak_rss_bytes: int | None, peak_own_bytes: int | None, peak_vram_bytes: int | None
) -> dict[str, str]:
    """The peaks of a finished job by name, in GB (10^9 bytes)."""
    peaks = {
        "peak memory": peak_rss_bytes,
        "peak memory without mapped files": peak_own_bytes,
        "peak GPU memory": peak_vram_bytes,
    }
    return {name: _UNMEASURED if size is None else _gb(size) for name, size in peaks.items()}


class MemoryMeter:
    """Reads this process's memory and keeps the peaks of its samples; any thread may read."""

    def __init__(self) -> None:
        self._process = psutil.Process()
        self._lock = threading.Lock()
        self._peak_own_bytes = 0
        self.read_vram: VramReader | None = None

    def read(self) -> MemoryUsage:
        """Memory now and at its peak."""
        info = self._process.memory_info()
        own_bytes = _own_bytes(self._process, info)
        with self._lock:
            self._peak_own_bytes = max(self._peak_own_bytes, own_bytes or 0)
            peak_own_bytes = self._peak_own_bytes
        vram = self.read_vram() if self.read_vram is not None else None
        return MemoryUsage(
            rss_bytes=info.rss,
            peak_rss_bytes=max(info.rss, _recorded_peak_bytes()),
            own_bytes=own_bytes,
            peak_own_bytes=None if own_bytes is None else peak_own_bytes,
            vram_bytes=None if vram is None else vram[0],
            peak_vram_bytes=None if vram is None else vram[1],
        )


class TreeMemoryMeter:
    """Reads the memory of this process and all of its descendants together.

    Peaks are the largest samples; pages that several processes share count once for each.
    """

    def __init__(self) -> None:
        self._root = psutil.Process()
        self._lock = threading.Lock()
        self._peak_rss_bytes = self._peak_own_bytes = 0

    def read(self) -> MemoryUsage:
        """Memory now and at the peak of all samples; any thread may read."""
        rss_bytes = own_bytes = 0
        known = True
        for process in (self._root, *self._root.children(recursive=True)):
            with contextlib.suppress(psutil.Error):  # it has just ended
                info = process.memory_info()
                own = _own_bytes(process, info)
                rss_bytes += info.rss
                own_bytes += own or 0
                known = known and own is not None
        with self._lock:
            self._peak_rss_bytes = max(self._peak_rss_bytes, rss_bytes)
            self._peak_own_bytes = max(self._peak_own_bytes, own_bytes)
            return MemoryUsage(
                rss_bytes=rss_bytes,
                peak_rss_bytes=self._peak_rss_bytes,
                own_bytes=own_bytes if known else None,
                peak_own_bytes=self._peak_own_bytes if known else None,
            )


def resident_memory() -> tuple[int, int]:
    """Resident memory of this process in bytes: (now, peak)."""
    now = int(psutil.Process().memory_info().rss)
    return now, max(now, _recorded_peak_bytes())


def _own_bytes(process: psutil.Process, info: "psutil._ntuples.pmem") -> int | None:
    shared = getattr(info, "shared", None)  # Linux: resident files and shared memory
    if shared is not None:
        return max(0, info.rss - int(shared))
    try:
        return int(process.memory_full_info().uss)
    except (psutil.Error, AttributeError, NotImplementedError):
        return None


def _recorded_peak_bytes() -> int:
    """The peak that the system recorded.

    On Linux it is `VmHWM`, which is reset at exec. `ru_maxrss` is not: a child inherits the value
    of the parent that started it.
    """
    if _STATUS.exists():
        for line in _STATUS.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
