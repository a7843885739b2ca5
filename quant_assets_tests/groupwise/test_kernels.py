"""What gptqmodel's kernels compute with is what the packed tensors say, at every width."""

from pathlib import Path
from typing import Any

import pytest
from groupwise_jobs import drive, job_of

from quant_assets.bench.evaluation_text import EvaluationText
from quant_assets.models.identity import sha256_of
from quant_assets.models.source import SourceModel, resolve_source
from quant_assets.quantize.calibration import CalibrationText
from quant_assets.quantize.convert import plain_folder
from quant_assets.quantize.perplexity_gate import Checkpoint, Rounding, measure_checkpoints
from quant_assets.settings import Settings

CASES: dict[str, dict[str, Any]] = {
    "2bit-asymmetric": {"bits": 2, "sym": False},
    "3bit": {"bits": 3},
    "4bit-act-order": {"bits": 4, "desc_act": True},
    "8bit-row": {"bits": 8, "group_size": -1},
    "awq-gptqmodel": {"method": "awq", "engine": "gptqmodel"},
}


@pytest.mark.slow
def test_perplexity_of_packed_and_of_restored_weights_agree(
    source: SourceModel, calibration: CalibrationText, settings: Settings, tmp_path: Path
) -> None:
    text = EvaluationText(
        name="calibration", path=calibration.path, sha256=sha256_of(calibration.path)
    )
    jobs = [job_of(source, calibration, tmp_path / name, **case) for name, case in CASES.items()]
    drive(jobs)
    checkpoints = [
        Checkpoint(
            path=source.path, format="hf", rounding=Rounding(bits=4, group_size=32, sym=False)
        )
    ]
    for job in jobs:
        packed = resolve_source(str(job.output), settings)
        restored = plain_folder(packed, tmp_path / f"{job.output.name}-plain", settings)
        checkpoints += [
            Checkpoint(path=job.output, format=job.settings.format),
            Checkpoint(path=restored.path, format="hf"),
        ]
    rounded, *measured = measure_checkpoints(
        checkpoints, text, threads=1, device="cpu", windows=2, context=128
    )
    for name, packed_one, restored_one in zip(CASES, measured[::2], measured[1::2], strict=True):
        assert packed_one.perplexity == pytest.approx(restored_one.perplexity, rel=0.02), name
    # The engine that is not the default beats plain rounding as well.
    assert measured[-1].perplexity < rounded.perplexity
