"""The regret benchmark: its questions, what an answer loses, and its three ways of choosing cells."""

from collections.abc import Iterator
from types import ModuleType
from typing import Any, get_args

import pytest

from quant_assets.bench.variants import Variant
from quant_assets.speed.host_fit import HostPrediction
from quant_assets.warehouse.host_recommendation import HostCandidate, HostQuestion, QualityLoss
from quant_assets_tests.benchmarks.scripts import imported
from quant_assets_tests.speed.made_processors import BATCHES, BITS, grid, processor, runs_on


@pytest.fixture(scope="module")
def script() -> Iterator[ModuleType]:
    yield from imported("regret")


@pytest.fixture(scope="module")
def measured(script: ModuleType) -> Any:
    """A made-up processor's grid, measured without noise; fewer bits and smaller caches are worse."""
    runs = runs_on(processor(1), grid())
    candidates: dict[int, list[HostCandidate]] = {batch: [] for batch in BATCHES}
    for run in runs:
        cell = run.cell
        bits = BITS[cell.weights[0].type_name]
        variant = Variant(
            name=cell.variant, format="gguf", level="Q8_0",
            cache_type_k=cell.k_type.lower(), cache_type_v=cell.v_type.lower(),
        )  # fmt: skip
        loss = 0.2 / bits + 0.01 * (cell.v_type == "Q4_0") - 0.2 / 16
        candidates[cell.batch].append(
            HostCandidate(variant, cell, bits / 8, QualityLoss(loss), "measured")
        )
    return script.Grid(candidates, runs)


def exact(speed: float) -> HostPrediction:
    return HostPrediction(speed, speed, speed, "estimated", 1)


def test_every_question_has_an_answer_in_the_whole_grid(script: ModuleType, measured: Any):
    for batch, candidates in measured.candidates.items():
        asked = script.questions(candidates, measured.speeds)
        assert {item.kind for item in asked} == set(get_args(script.Kind))
        truth = [exact(measured.speeds[item.cell.key]) for item in candidates]
        for question in asked:
            assert question.question.batch == batch
            loss = script.loss_of(question, candidates, measured.speeds, truth)
            assert loss.answered and loss.loss == pytest.approx(0.0, abs=1e-12)


def test_a_choice_loses_what_the_best_is_better_by(script: ModuleType, measured: Any):
    candidates = measured.candidates[1]
    speeds = [measured.speeds[item.cell.key] for item in candidates]
    best, worst = max(speeds), min(speeds)
    upside_down = [exact(1 / speed) for speed in speeds]
    fastest = script.Asked("fastest", HostQuestion(model="m"))
    lost = script.loss_of(fastest, candidates, measured.speeds, upside_down)
    assert lost.loss == pytest.approx(1 - worst / best)

    too_fast = HostQuestion(model="m", objective="quality", min_tokens_per_s=best)
    at_speed = script.Asked("best quality at speed", too_fast)
    hopeful = [exact(2 * best)] * len(candidates)
    chosen = next(item for item in candidates if item.quality.loss == 0)
    missed = 1 - measured.speeds[chosen.cell.key] / best
    assert missed > 0
    lost = script.loss_of(at_speed, candidates, measured.speeds, hopeful)
    assert lost.loss == pytest.approx(missed)

    nothing = script.loss_of(at_speed, candidates, measured.speeds, [exact(0.1)] * len(candidates))
    assert (nothing.loss, nothing.answered) == (1.0, False)


def test_a_design_loses_little_and_noise_is_its_floor(script: ModuleType, measured: Any):
    design, fifths, noise = script.compare(measured, [0.01, -0.02, 0.0], 3, seed=1)
    assert design.measured_cells == fifths.measured_cells == 19
    assert (design.repetitions, fifths.repetitions, noise.repetitions) == (1, 3, 3)
    assert noise.measured_cells == 96 and noise.errors is None
    (overall, *kinds) = design.losses
    assert overall.answers == sum(item.answers for item in kinds)
    assert overall.median <= script.TARGET
    assert design.errors.median < 0.1
    again = script.compare(measured, [0.01, -0.02, 0.0], 3, seed=1)
    assert [item.model_dump() for item in again] == [
        item.model_dump() for item in (design, fifths, noise)
    ]


def test_the_grid_is_every_level_with_every_cache(script: ModuleType):
    variants = script.variants_of(script.LEVELS)
    assert len(variants) == len(script.LEVELS) * len(script.KV_TYPES) == 24
    hybrid = variants["q4_0-k_q8_0-v_q4_0"]
    assert (hybrid.level, hybrid.cache_type_k, hybrid.cache_type_v) == ("Q4_0", "q8_0", "q4_0")


@pytest.mark.parametrize(
    "arguments",
    [("--levels", "Q4_K_XL"), ("--batch-sizes", "0"), ("--runs", "0"), ("--text", "novel")],
)
def test_wrong_arguments_fail_before_anything_is_measured(
    script: ModuleType, arguments: tuple[str, str]
):
    with pytest.raises(SystemExit) as stop:
        script.parse_arguments(arguments)
    assert stop.value.code == 2
