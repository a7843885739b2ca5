"""Errors, intervals and limits of predicted speeds."""

import pytest

from quant_assets.speed.checking import (
    OWN_LIMITS,
    PredictedRun,
    SpeedCheck,
    SpeedLimits,
    Target,
    check_predictions,
    depth_label,
    error_figures,
)
from quant_assets.speed.workload import Phase, Prediction, Workload


def workload(phase: Phase = "decode", batch: int = 1) -> Workload:
    return Workload(
        phase=phase, engine="llama.cpp", backend="CUDA", weight_type="Q4_K", weight_bytes=4e9,
        parameters=7e9, layers=32, batch=batch, tokens=batch, tokens_per_pass=batch,
        kv_bytes=0, attention_flops=0,
    )  # fmt: skip


def predicted(
    measured: float,
    speed: float = 100,
    *,
    phase: Phase = "decode",
    batch: int = 1,
    depth: float = 0,
) -> PredictedRun:
    return PredictedRun(
        "r", "L4", workload(phase, batch), measured,
        Prediction(speed, speed / 1.25, speed * 1.25, "all GPUs", 3), depth_tokens=depth,
    )  # fmt: skip


def target(check: SpeedCheck, name: str) -> Target:
    return next(target for target in check.targets if target.name.startswith(name))


def test_figures() -> None:
    figures = error_figures([predicted(100), predicted(50), predicted(80), predicted(125)])
    assert figures.n == 4
    assert figures.median_error == pytest.approx((0.2 + 0.25) / 2)
    assert figures.p90_error == pytest.approx(0.25 + 0.7 * 0.75)
    assert figures.coverage == 0.75
    assert figures.mean_width == pytest.approx(1.5625)


def test_no_runs() -> None:
    check = check_predictions([])
    assert check.passed
    assert check.decode.all.n == 0
    assert {target.met for target in check.targets} == {None}


def test_tables_by_property() -> None:
    runs = [
        predicted(100, batch=16),
        predicted(90, batch=2, depth=5000),
        predicted(50, phase="prefill"),
    ]
    check = check_predictions(runs)
    assert list(check.decode.by_batch) == ["2", "16"]
    assert list(check.decode.by_depth) == ["0-511", "4096-16383"]
    assert check.decode.by_level["Q4_K"].n == 2
    assert list(check.decode.by_tokens_per_pass) == ["1-8", "9-64"]
    assert check.prefill.by_gpu["L4"].median_error == 1


def test_runs_without_a_prediction_are_counted() -> None:
    run = PredictedRun("r", "L4", workload(), 100, None)
    check = check_predictions([run, predicted(100)])
    assert (check.not_predicted, check.decode.all.n) == (1, 1)


def test_each_limit_fails_on_its_own_runs() -> None:
    limits = SpeedLimits(
        decode_median=0.08, decode_p90=0.2, deep_batch_median=0.15, prefill_median=0.15,
        prefill_p90=0.4, coverage=(0.85, 0.95), decode_width=1.5,
    )  # fmt: skip
    runs = [predicted(92) for _ in range(9)] + [predicted(99) for _ in range(7)]
    runs += [predicted(40) for _ in range(3)]
    runs += [predicted(80, batch=4, depth=4096) for _ in range(10)]
    runs += [predicted(95, phase="prefill") for _ in range(10)]
    check = check_predictions(runs, limits)
    assert target(check, "decode at batch 1, median").met is False
    assert target(check, "decode at batch 1, 90th").met is False
    assert target(check, "decode at batch > 1").met is False
    assert target(check, "decode, mean width").met is False
    assert target(check, "prefill, median").met is True
    assert target(check, "prefill, 90th").met is True
    assert not check.passed
    assert len(check.problems) == 4


def test_few_runs_are_not_judged() -> None:
    check = check_predictions([predicted(10) for _ in range(9)])
    assert check.passed
    assert target(check, "decode at batch 1, median").met is None


def test_coverage_is_judged_beyond_chance() -> None:
    def covered(inside: int, n: int) -> bool | None:
        runs = [predicted(100) for _ in range(inside)] + [predicted(10) for _ in range(n - inside)]
        check = check_predictions(runs, SpeedLimits(coverage=(0.85, 0.95)))
        return target(check, "decode, coverage").met

    assert covered(8, 10) is True  # too few runs to tell 80 % from 85 %
    assert covered(800, 1000) is False
    assert covered(900, 1000) is True
    assert covered(10, 10) is True
    assert covered(990, 1000) is False


def test_own_runs_that_leave_their_intervals_fail() -> None:
    check = check_predictions([predicted(10) for _ in range(12)], OWN_LIMITS)
    assert not check.passed
    assert "coverage" in check.problems[0]
    assert check_predictions([predicted(110) for _ in range(12)], OWN_LIMITS).passed


def test_depth_labels() -> None:
    assert [depth_label(tokens) for tokens in (0, 511.5, 512, 4096, 1e6)] == [
        "0-511", "0-511", "512-4095", "4096-16383", "16384 and more",
    ]  # fmt: skip
