"""Predictions of published runs: made without their speeds, by table, with reasons."""

import pytest

from quant_assets.gpus.registry import load_registry
from quant_assets.speed.model import load_speed_model
from quant_assets.speed.run_check import RunCheck, check_runs
from quant_assets.speed.runs import LeftOut, RunFile, SpeedRun
from quant_assets.speed.selection import select_runs
from quant_assets_tests.speed.test_runs import MINIMAL


def runs(*fields: dict[str, object]) -> RunFile:
    return RunFile(
        tuple(
            SpeedRun.model_validate({"row_id": f"r{number}", **MINIMAL, **each})
            for number, each in enumerate(fields)
        ),
        (LeftOut("bad", "invalid_row", "batch: not a number"),),
    )


def checked(*fields: dict[str, object]) -> RunCheck:
    return check_runs(select_runs(runs(*fields), load_registry()), load_speed_model())


def test_predictions_do_not_look_at_the_measured_speed() -> None:
    slow = checked({"tokens_per_s": 1}, {"test": "prefill", "tokens_per_s": 1})
    fast = checked({"tokens_per_s": 9999}, {"test": "prefill", "tokens_per_s": 9999})
    for before, after in zip(slow.predictions, fast.predictions, strict=True):
        assert (before.predicted, before.low, before.high) == (
            after.predicted, after.low, after.high,
        )  # fmt: skip
        assert before.low < before.predicted < before.high


def test_several_gpus_decode_no_faster_than_one() -> None:
    found = checked({}, {"gpu_count": 2}, {"gpu_count": 8})
    assert len({row.predicted for row in found.predictions}) == 1
    assert found.several_gpus.decode.all.n == 2
    assert found.dense.decode.all.n == 1


def test_several_gpus_prefill_as_a_pipeline() -> None:
    """Eight micro-batches pass four GPUs in 11 steps of a quarter of the time."""

    def speedup(**fields: object) -> float:
        run = {"test": "prefill", "prompt_tokens": 4096, **fields}
        one, four = checked(run, run | {"gpu_count": 4}).predictions
        assert (four.high / one.high) == pytest.approx(four.predicted / one.predicted)
        return four.predicted / one.predicted

    assert speedup() == pytest.approx(8 * 4 / 11)
    assert speedup(prompt_tokens=512) == 1
    assert speedup(gpu_backend="Vulkan") == 1
    assert speedup(engine_build_or_date="b2000", source_date="2024-01") == 1


def test_tables_and_counts() -> None:
    found = checked(
        {},
        {"model": "Qwen3 30B-A3B"},
        {"engine": "ik_llama.cpp"},
        {"model": "Unheard-of 9B", "level": "Q8_0"},
        {"suspect": "throttled"},
    )
    assert (found.rows, found.predicted_rows, found.generic_shapes) == (6, 4, 1)
    assert found.mixtures_of_experts.decode.all.n == 1
    assert found.other_engines["ik_llama.cpp"].decode.by_level["Q4_K_M"].n == 1
    assert found.left_out_by_reason == {"invalid_row": 1, "suspect": 1}
    assert {row.row_id: row.detail for row in found.left_out}["r4"] == "throttled"
    assert not found.mixtures_of_experts.targets


def test_the_worst_predictions_come_first_with_a_reason() -> None:
    found = checked(
        *({"tokens_per_s": 100 + number} for number in range(9)),
        {"tokens_per_s": 0.5, "source_url": "a"},
        {"tokens_per_s": 90_000, "measure": "community", "source_url": "b"},
    )
    assert len(found.worst) == 10
    assert [item.prediction.row_id for item in found.worst[:2]] == ["r10", "r9"]
    assert "source's runs are all faster" in found.worst[0].likely_reason
    assert "slower" in found.worst[1].likely_reason


def test_no_rows() -> None:
    found = check_runs(select_runs(RunFile((), ()), load_registry()), load_speed_model())
    assert (found.rows, found.predicted_rows, found.worst) == (0, 0, [])
