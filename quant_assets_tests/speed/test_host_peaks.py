"""This host's peaks, measured by the real worker on small arrays."""

from pathlib import Path

import pytest

from quant_assets.errors import InputError
from quant_assets.speed.host_peaks import HostPeaksJob, measure_host_peaks, recorded_peaks


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
