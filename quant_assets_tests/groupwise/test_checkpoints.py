"""Interrupted runs: SIGKILL at any moment, then the same job ends in the same bytes."""

from pathlib import Path

import pytest
from groupwise_jobs import drive, job_of

from quant_assets.models.identity import sha256_of
from quant_assets.models.source import SourceModel
from quant_assets.quantize.calibration import CalibrationText
from quant_assets.quantize.groupwise import GroupwiseJob, quantize_groupwise


def weights(job: GroupwiseJob) -> str:
    return sha256_of(job.output / "model.safetensors")


@pytest.mark.slow
@pytest.mark.parametrize("method", ["gptq", "awq"])
def test_ten_kills(
    method: str, source: SourceModel, calibration: CalibrationText, tmp_path: Path
) -> None:
    whole = job_of(source, calibration, tmp_path / "whole", method)
    drive([whole])
    jobs = [job_of(source, calibration, tmp_path / f"killed-{n}", method) for n in range(5)]
    results = drive(jobs, kills=2, seed=7)
    assert any(result.resumed_from_layer for result in results)
    for job in jobs:
        assert weights(job) == weights(whole)


def test_another_job_starts_over_and_damage_is_found(
    source: SourceModel, calibration: CalibrationText, tmp_path: Path
) -> None:
    job = job_of(source, calibration, tmp_path / "out", "awq")
    assert quantize_groupwise(job).resumed_from_layer is None
    digest = weights(job)
    layer = job.work / "layer-00001.safetensors"
    content = bytearray(layer.read_bytes())
    content[-1] ^= 1
    layer.write_bytes(content)
    messages: list[str] = []
    again = quantize_groupwise(
        job, on_event=lambda e: messages.append(e.message) if e.event == "log" else None
    )
    assert again.resumed_from_layer is None and weights(job) == digest
    assert any("layer 1 is damaged" in message for message in messages)
