"""Interrupted runs: SIGKILL at any moment, then the same job ends in the same bytes."""

import json
import random
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
from groupwise_jobs import job_of

from quant_assets.models.identity import sha256_of
from quant_assets.models.source import SourceModel
from quant_assets.quantize.calibration import CalibrationText
from quant_assets.quantize.groupwise import ENVIRONMENT, GroupwiseJob, quantize_groupwise
from quant_assets.settings import PROJECT_ROOT
from quant_assets.workers.environments import interpreter


def kill_somewhere(job: GroupwiseJob, chance: random.Random) -> bool:
    """SIGKILL the worker at a random moment of its layers; False when it was done before."""
    worker = subprocess.Popen(
        [
            interpreter(ENVIRONMENT[job.settings.engine]),
            "-m",
            f"quant_assets.workers.{job.settings.format}",
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        cwd=PROJECT_ROOT,
    )
    assert worker.stdin is not None and worker.stdout is not None
    worker.stdin.write(job.model_dump_json().encode())
    worker.stdin.close()
    stop_after = chance.randint(0, 2)
    finished = False
    for line in worker.stdout:
        event = json.loads(line)
        assert event["event"] != "error", event
        finished = event["event"] == "result"
        if event.get("step") == "quantize" and event["done"] >= stop_after:
            break
    time.sleep(chance.random() * 0.4)
    worker.send_signal(signal.SIGKILL)
    worker.wait()
    worker.stdout.close()
    return not finished


def weights(job: GroupwiseJob) -> str:
    return sha256_of(job.output / "model.safetensors")


def check_kills(
    method: str,
    kills: int,
    source: SourceModel,
    calibration: CalibrationText,
    tmp_path: Path,
    chance: random.Random,
) -> None:
    whole = job_of(source, calibration, tmp_path / "whole", method)
    quantize_groupwise(whole)
    resumed = 0
    for number in range(kills):
        job = job_of(source, calibration, tmp_path / f"killed-{number // 2}", method)
        kill_somewhere(job, chance)
        if number % 2 or number == kills - 1:
            result = quantize_groupwise(job)
            resumed += result.resumed_from_layer is not None
            assert weights(job) == weights(whole)
    assert resumed or kills == 1


@pytest.mark.parametrize("method", ["gptq", "awq"])
def test_a_kill(
    method: str,
    source: SourceModel,
    calibration: CalibrationText,
    tmp_path: Path,
) -> None:
    check_kills(method, 1, source, calibration, tmp_path, random.Random(3))


@pytest.mark.slow
@pytest.mark.parametrize("method", ["gptq", "awq"])
def test_ten_kills(
    method: str,
    source: SourceModel,
    calibration: CalibrationText,
    tmp_path: Path,
    chance: random.Random,
) -> None:
    check_kills(method, 10, source, calibration, tmp_path, chance)


def test_another_job_starts_over_and_damage_is_found(
    source: SourceModel, calibration: CalibrationText, tmp_path: Path
) -> None:
    job = job_of(source, calibration, tmp_path / "out", "awq")
    first = quantize_groupwise(job)
    assert first.resumed_from_layer is None
    digest = weights(job)
    # The work folder of a finished worker is whole: nothing is left to do.
    assert quantize_groupwise(job).resumed_from_layer == 3
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
    shutil.rmtree(job.work)
