import subprocess
import sys
from typing import Any

import pytest

from quant_assets.host.conditions import HostWatch, host_conditions

QUIET: dict[str, Any] = {
    "load_average_1m": 5.0,
    "others_busy_cores": 0.05,
    "steal_fraction": 0.0,
    "governor": "performance",
    "gpu_processes": [],
}


def test_a_quiet_host_is_not_contended_despite_its_load_average() -> None:
    assert not host_conditions(**QUIET).contended


@pytest.mark.parametrize(
    ("reading", "reason"),
    [
        ({"others_busy_cores": 0.9}, "0.90 cores"),
        ({"steal_fraction": 0.1}, "10.0%"),
        ({"gpu_processes": ["77, python, 900"]}, "77, python"),
    ],
)
def test_each_disturbance_marks_the_record(reading: dict[str, Any], reason: str) -> None:
    conditions = host_conditions(**{**QUIET, **reading})
    assert conditions.contended
    assert reason in conditions.reasons[0]


def test_unreadable_counters_decide_nothing() -> None:
    unreadable = {"load_average_1m": None, "others_busy_cores": None, "steal_fraction": None}
    assert not host_conditions(**{**QUIET, **unreadable}).contended


def test_another_busy_process_is_detected() -> None:
    hog = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        conditions = HostWatch().finish()
    finally:
        hog.kill()
        hog.wait()
    assert conditions.contended
    assert "cores busy" in " ".join(conditions.reasons)
