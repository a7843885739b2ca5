"""Devices that a job may run on, and the cores available to it."""

import os
from pathlib import Path
from typing import Literal

import psutil

Device = Literal["auto", "cpu", "cuda"]

_CGROUP_QUOTA = Path("/sys/fs/cgroup/cpu.max")


def available_physical_cores() -> int:
    """Physical cores available to this process, within its affinity and CPU quota."""
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    limits = [psutil.cpu_count(logical=False) or 1, affinity or 1]
    if _CGROUP_QUOTA.exists():
        quota, period = _CGROUP_QUOTA.read_text(encoding="ascii").split()
        if quota != "max":
            limits.append(max(1, int(quota) // int(period)))
    return min(limits)
