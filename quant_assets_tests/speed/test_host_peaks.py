"""This host's peaks, measured by the real worker on small arrays."""

import datetime
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from quant_assets.assets.host import PEAKS_UNCONTENDED, build_host_peaks
from quant_assets.errors import InputError
from quant_assets.host.identity import host_id
from quant_assets.resources.stores import DataRoot
from quant_assets.settings import PROJECT_ROOT
from quant_assets.speed import host_peaks as module
from quant_assets.speed.host_peaks import (
    ATTEMPTS,
    HostPeaks,
    HostPeaksJob,
    RecordedPeaks,
    measure_host_peaks,
    recorded_peaks,
    uncontended_peaks,
)


def test_peaks_are_measured_and_kept(tmp_path: Path):
    job = HostPeaksJob(threads=1, array_bytes=2**20, matrix_size=128, repetitions=2)
    peaks = measure_host_peaks(tmp_path / "results", 1, job=job, locks=tmp_path / "locks")
    assert peaks.threads == 1
    # Every current machine exceeds the lower bounds, and none reaches the upper ones.
    assert 0.05 < peaks.triad_gb_s < 10_000
    assert 0.05 < peaks.read_gb_s < 10_000
    assert 0.05 < peaks.matmul_gflop_s < 100_000
    assert recorded_peaks(tmp_path / "results") == [peaks]


def test_a_damaged_file_is_named(tmp_path: Path):
    folder = tmp_path / "hosts"
    folder.mkdir()
    (folder / "cpu_2_x.json").write_text("{}")
    with pytest.raises(InputError, match="cpu_2_x"):
        recorded_peaks(tmp_path)


NOW = datetime.datetime(2026, 5, 4, 12, tzinfo=datetime.UTC)


def peaks(bandwidth: float, *, contended: bool, **fields: Any) -> dict[str, Any]:
    return {
        "cpu_name": "cpu",
        "threads": 2,
        "triad_gb_s": bandwidth,
        "read_gb_s": bandwidth / 2,
        "matmul_gflop_s": 100 - bandwidth,
        "contended": contended,
        "library_versions": {},
        **fields,
    }


def measure(
    monkeypatch: pytest.MonkeyPatch, folder: Path, worker: Iterator[dict[str, Any]]
) -> tuple[RecordedPeaks, list[float]]:
    """Measure with the peaks that `worker` gives; also the longest waits for a quiet machine."""
    waits: list[float] = []
    monkeypatch.setattr(module, "run_worker", lambda *_, **__: HostPeaks(**next(worker)))
    monkeypatch.setattr(module, "wait_until_quiet", waits.append)
    return measure_host_peaks(folder, 2, locks=folder / "locks"), waits


def keep(folder: Path, name: str, **fields: Any) -> RecordedPeaks:
    record = RecordedPeaks(**peaks(**fields), measured_at=NOW)
    (folder / "hosts").mkdir(parents=True, exist_ok=True)
    (folder / "hosts" / f"{name}.json").write_text(record.model_dump_json())
    return record


def test_a_contended_measurement_is_repeated_when_the_machine_is_quiet(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    worker = iter([peaks(9, contended=True), peaks(20, contended=False)])
    found, waits = measure(monkeypatch, tmp_path, worker)
    assert (found.triad_gb_s, found.contended, found.attempts) == (20, False, 2)
    assert found.host_id == host_id()
    assert len(waits) == 1 and waits[0] > 0
    assert recorded_peaks(tmp_path) == [found]


def test_attempts_are_bounded_and_the_highest_contended_peaks_are_a_lower_bound(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    worker = iter([peaks(bandwidth, contended=True) for bandwidth in (9, 12, 10, 99)])
    found, waits = measure(monkeypatch, tmp_path, worker)
    assert len(waits) == ATTEMPTS - 1
    assert (found.triad_gb_s, found.read_gb_s, found.matmul_gflop_s) == (12, 6, 91)
    assert (found.contended, found.attempts) == (True, ATTEMPTS)
    assert recorded_peaks(tmp_path) == [found]


def test_an_uncontended_record_of_the_processor_outlives_contended_measurements(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    other = keep(tmp_path, "a", bandwidth=30, contended=False, host_id="other")
    keep(tmp_path, "b", bandwidth=40, contended=False, threads=4, host_id=host_id())
    keep(tmp_path, "c", bandwidth=50, contended=False, cpu_name="another", host_id=host_id())
    before = recorded_peaks(tmp_path)
    worker = iter([peaks(9, contended=True) for _ in range(2 * ATTEMPTS)])
    assert measure(monkeypatch, tmp_path, worker)[0] == other
    own = keep(tmp_path, "0", bandwidth=20, contended=False, host_id=host_id())
    assert measure(monkeypatch, tmp_path, worker)[0] == own
    assert len(recorded_peaks(tmp_path)) == len(before) + 1
    assert uncontended_peaks(tmp_path, "cpu", 3, host_id()) is None


def test_records_without_a_host_id_are_read(tmp_path: Path):
    record = keep(tmp_path, "old", bandwidth=20, contended=False)
    (file,) = (tmp_path / "hosts").iterdir()
    file.write_text(record.model_dump_json(exclude={"host_id", "attempts"}))
    assert recorded_peaks(tmp_path) == [record]
    assert uncontended_peaks(tmp_path, "cpu", 2, "this") == record


@pytest.mark.parametrize("known", [False, True])
def test_the_asset_warns_of_contended_peaks_and_does_not_fail(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, known: bool
):
    root = DataRoot(home=str(tmp_path), data=str(PROJECT_ROOT / "data"))
    if known:
        keep(tmp_path / "results", "a", bandwidth=30, contended=False)
    worker = iter([peaks(9, contended=True)] * ATTEMPTS)
    monkeypatch.setattr(module, "run_worker", lambda *_, **__: HostPeaks(**next(worker)))
    monkeypatch.setattr(module, "wait_until_quiet", lambda _: False)
    monkeypatch.setattr("quant_assets.assets.host.available_physical_cores", lambda: 2)
    result = dg.materialize([build_host_peaks()], resources={"data_root": root})
    (evaluation,) = result.get_asset_check_evaluations()
    assert result.success
    assert (evaluation.check_name, evaluation.passed) == (PEAKS_UNCONTENDED, known)
    assert evaluation.severity is dg.AssetCheckSeverity.WARN
    (event,) = result.asset_materializations_for_node("host_peaks")
    assert event.metadata["contended"].value is not known
    assert "disturbed all 3 measurements" in str(event.metadata["note"].value)
