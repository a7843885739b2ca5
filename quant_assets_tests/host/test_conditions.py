import subprocess
import sys
from typing import Any

import pytest

from quant_assets.host.conditions import HostWatch, host_conditions, wait_until_quiet

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
        quiet = wait_until_quiet(0.1)
    finally:
        hog.kill()
        hog.wait()
    assert conditions.contended and not quiet
    assert "cores busy" in " ".join(conditions.reasons)


def test_a_quiet_host_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two busy intervals, then a quiet one."""
    from quant_assets.host import conditions

    busy_s = iter([0.0, 1.0, 2.0, 2.0])
    clock = iter(range(10))

    def counters() -> "conditions._Counters":
        now = float(next(clock))
        return conditions._Counters(
            wall_s=now, busy_s=next(busy_s), steal_s=0.0, total_s=4 * now, own_s=0.0
        )

    monkeypatch.setattr(conditions, "_read_counters", counters)
    monkeypatch.setattr(conditions, "BEFORE_INTERVAL_S", 0.0)
    assert wait_until_quiet(60)
    assert next(busy_s, None) is None
