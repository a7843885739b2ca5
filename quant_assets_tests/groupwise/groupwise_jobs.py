"""Jobs on the tiny trained model."""

from pathlib import Path

from quant_assets.formats.group_quantization import GroupQuantization
from quant_assets.models.source import SourceModel
from quant_assets.quantize.calibration import CalibrationText
from quant_assets.quantize.groupwise import Engine, GroupwiseJob, groupwise_settings


def job_of(
    source: SourceModel,
    calibration: CalibrationText,
    output: Path,
    method: str = "gptq",
    *,
    bits: int = 4,
    group_size: int = 32,
    engine: Engine | None = None,
    desc_act: bool = False,
    sym: bool = True,
) -> GroupwiseJob:
    quantization = GroupQuantization.model_validate(
        {"method": method, "bits": bits, "group_size": group_size}
    )
    return GroupwiseJob(
        source=source.path,
        source_identity=source.identity,
        output=output,
        work=output.with_name(f"{output.name}.work"),
        settings=groupwise_settings(
            quantization, engine=engine, desc_act=desc_act, sym=sym, samples=32, sequence_length=64
        ),
        calibration=calibration.path,
        calibration_identity=calibration.sha256,
        threads=1,
        device="cpu",
    )
