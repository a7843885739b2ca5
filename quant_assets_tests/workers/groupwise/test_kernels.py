"""gptqmodel's kernels compute with the values that the packed tensors encode, at every width."""

import io
from pathlib import Path
from typing import Any

import pytest

from quant_assets.models.source import SourceModel
from quant_assets.processes.protocol import EventChannel
from quant_assets.quantize.conversion.plain_weights import UnpackJob
from quant_assets.quantize.groupwise.gate import Checkpoint, Rounding, measure_checkpoints
from quant_assets.quantize.groupwise.layout import check_layout
from quant_assets.texts.calibration import CalibrationText
from quant_assets.texts.evaluation import EvaluationText
from quant_assets.workers.checkpoint.unpack import unpack
from quant_assets_tests.workers.groupwise.groupwise_jobs import drive, job_of

CASES: dict[str, dict[str, Any]] = {
    "2bit-g32-zero-point": {"bits": 2, "group_size": 32, "sym": False},
    "2bit-g128": {"bits": 2, "group_size": 128},
    "3bit-g64": {"bits": 3, "group_size": 64},
    "3bit-g32-act-order-zero-point": {
        "bits": 3, "group_size": 32, "desc_act": True, "sym": False,
    },
    "4bit-g128-act-order": {"bits": 4, "group_size": 128, "desc_act": True},
    "4bit-g64-zero-point": {"bits": 4, "group_size": 64, "sym": False},
    "4bit-row-zero-point": {"bits": 4, "group_size": -1, "sym": False},
    "8bit-g64": {"bits": 8, "group_size": 64},
    "8bit-row-act-order": {"bits": 8, "group_size": -1, "desc_act": True},
    "awq-g128-gptqmodel": {"method": "awq", "engine": "gptqmodel", "group_size": 128},
    "awq-g32-gptqmodel": {"method": "awq", "engine": "gptqmodel", "group_size": 32},
}  # fmt: skip


@pytest.mark.quantizers
@pytest.mark.slow
def test_perplexity_of_packed_and_of_restored_weights_agree(
    source: SourceModel, calibration: CalibrationText, text: EvaluationText, tmp_path: Path
) -> None:
    jobs = [job_of(source, calibration, tmp_path / name, **case) for name, case in CASES.items()]
    drive(jobs)
    rounding = Rounding(bits=4, group_size=32, sym=False)
    checkpoints = [Checkpoint(path=source.path, format="hf", rounding=rounding)]
    for job in jobs:
        assert check_layout(job.output) == 3 * 7
        restored = job.output.with_name(f"{job.output.name}-plain")
        unpack(UnpackJob(source=job.output, output=restored), EventChannel(io.StringIO()))
        checkpoints += [
            Checkpoint(path=job.output, format=job.settings.format),
            Checkpoint(path=restored, format="hf"),
        ]
    rounded, *measured = measure_checkpoints(
        checkpoints, text, threads=1, device="cpu", windows=8, context=64
    )
    for name, packed_one, restored_one in zip(CASES, measured[::2], measured[1::2], strict=True):
        assert packed_one.perplexity == pytest.approx(restored_one.perplexity, rel=0.02), name
        assert packed_one.generated_text
    # The non-default engine beats plain rounding as well.
    assert measured[-2].perplexity < rounded.perplexity
