"""Jobs on the tiny trained model."""

import json
import os
import subprocess
from pathlib import Path

from quant_assets.formats.group_quantization import GroupQuantization
from quant_assets.models.source import SourceModel
from quant_assets.processes.environments import interpreter
from quant_assets.quantize.groupwise.job import (
    ENVIRONMENT,
    Engine,
    GroupwiseJob,
    GroupwiseResult,
    groupwise_settings,
)
from quant_assets.settings import PROJECT_ROOT
from quant_assets.texts.calibration import CalibrationText


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
    sym: bool | None = None,
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


def drive(jobs: list[GroupwiseJob], *, kills: int = 0, seed: int = 1) -> list[GroupwiseResult]:
    """Run jobs that share an environment, each after `kills` kills at random moments."""
    engine = jobs[0].settings.engine
    done = subprocess.run(
        [interpreter(ENVIRONMENT[engine]), Path(__file__).with_name("job_driver.py")],
        input=json.dumps(
            {"jobs": [job.model_dump(mode="json") for job in jobs], "kills": kills, "seed": seed}
        ),
        env={
            **os.environ,
            "PYTHONPATH": str(PROJECT_ROOT),
            "GPTQMODEL_CPU_WORKERS": "2",
            # Children are forked, so the parent must not own OpenMP threads.
            "OMP_NUM_THREADS": "1",
        },
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    answers = [line for line in done.stdout.splitlines() if line.startswith("ANSWER ")]
    assert len(answers) == len(jobs), done.stderr[-3000:]
    return [GroupwiseResult.model_validate_json(line.removeprefix("ANSWER ")) for line in answers]
