"""The built-in heuristics on single GPUs and on tables."""

import json

import pandas as pd
import pytest

from quant_assets.capacity.heuristics.catalog import make_strategy
from quant_assets.capacity.heuristics.strategy import GpuFacts, apply_strategies
from quant_assets.capacity.memory import Serving, estimate_memory, weights_at_level
from quant_assets.capacity.placement import fit
from quant_assets.capacity.reference_models import reference_models
from quant_assets.errors import InputError
from quant_assets.gpus.registry import load_registry

REGISTRY = load_registry()


def capacities(vram_gb: float | None, **options: object) -> list[object]:
    strategy = make_strategy("quantization_capacity", **options)
    answer = strategy.evaluate(GpuFacts(vram_gb=vram_gb))
    return [value for column, value in answer.items() if "." in column]


@pytest.mark.parametrize(
    ("vram_gb", "expected"),
    [
        (14, [3, 1, 0]),
        (48, [13, 7, 1]),
        (80, [22, 12, 2]),
        (2, [0, 0, 0]),
        (1.5, [0, 0, 0]),
        (0, [0, 0, 0]),
        (5.5, [1, 0, 0]),
        (5.49, [0, 0, 0]),
        (None, [None, None, None]),
    ],
)
def test_simple_capacity(vram_gb: float | None, expected: list[int | None]) -> None:
    assert capacities(vram_gb) == expected


@pytest.mark.parametrize(
    ("vram_gb", "at_35", "at_40"),
    [(36.9, 0, 0), (37, 1, 0), (40, 1, 0), (42, 1, 1), (48, 1, 1), (80, 2, 1), (192, 5, 4)],
)
def test_the_size_of_70b_can_be_set(vram_gb: float, at_35: int, at_40: int) -> None:
    assert capacities(vram_gb)[2] == at_35
    sizes = {"7b": 3.5, "13b": 6.5, "70b": 40.0}
    assert capacities(vram_gb, model_sizes_gb=sizes) == [*capacities(vram_gb)[:2], at_40]


def test_exact_multiples_are_not_lost_to_binary_fractions() -> None:
    # (4.6 - 1.1) / 3.5 is 0.9999999999999998 in binary floating point.
    assert capacities(4.6, overhead_gb=1.1) == [1, 0, 0]


def test_other_bit_widths_scale_and_suffix() -> None:
    assert capacities(48, bits=[8]) == [6, 3, 0]
    assert capacities(48, bits=[2]) == [26, 14, 2]
    strategy = make_strategy("quantization_capacity", bits=[4, 8])
    answer = strategy.evaluate(GpuFacts(vram_gb=48))
    assert answer["quantization_capacity.7b_4bit"] == 13
    assert answer["quantization_capacity.7b_8bit"] == 6
    assert list(strategy.columns()) == list(answer)


def test_the_overhead_is_configurable_between_1_and_2() -> None:
    assert capacities(15, overhead_gb=1) == [4, 2, 0]
    for wrong in (0.9, 2.1, -1, "much"):
        with pytest.raises(InputError, match="overhead_gb"):
            capacities(15, overhead_gb=wrong)


def test_the_json_column_agrees_with_the_others() -> None:
    strategy = make_strategy("quantization_capacity")
    answer = strategy.evaluate(GpuFacts(vram_gb=14))
    assert json.loads(str(answer["quantization_capacity"])) == {"7b": 3, "13b": 1, "70b": 0}
    assert strategy.evaluate(GpuFacts())["quantization_capacity"] is None


def test_devices_of_one_board_do_not_pool_their_memory() -> None:
    facts = GpuFacts(vram_gb=64, devices=4)
    answer = make_strategy("quantization_capacity").evaluate(facts)
    assert answer["quantization_capacity.7b"] == 4 * 4
    assert answer["quantization_capacity.70b"] == 0


@pytest.mark.parametrize(
    ("facts", "expected"),
    [
        (GpuFacts(vram_gb=24, tdp_w=300, mig_instances=1), True),
        (GpuFacts(vram_gb=23.9, tdp_w=300, mig_instances=7), False),
        (GpuFacts(vram_gb=24, tdp_w=301, mig_instances=7), False),
        (GpuFacts(vram_gb=24, tdp_w=300, mig_instances=0), False),
        (GpuFacts(vram_gb=24, tdp_w=300), None),
        (GpuFacts(vram_gb=8), False),
        (GpuFacts(), None),
    ],
)
def test_capable(facts: GpuFacts, expected: bool | None) -> None:
    assert make_strategy("quantization_capable").evaluate(facts)["quantization_capable"] is expected


def test_capable_thresholds_come_from_the_options() -> None:
    relaxed = make_strategy("quantization_capable", min_mig_instances=0, max_tdp_w=400)
    facts = GpuFacts.of(REGISTRY.get("GeForce RTX 3090"))
    assert relaxed.evaluate(facts)["quantization_capable"] is True
    strict = make_strategy("quantization_capable")
    assert strict.evaluate(facts)["quantization_capable"] is False


def test_detailed_counts_what_a_server_needs() -> None:
    strategy = make_strategy("detailed_capacity", context=4096, batch=1)
    gpu = REGISTRY.get("GeForce RTX 4090")
    answer = strategy.evaluate(GpuFacts.of(gpu))
    shape = reference_models()["Llama 2 7B"].shape
    estimate = estimate_memory(
        "7b", shape, weights_at_level(shape, "Q4_K_M"), Serving(context=4096)
    )
    assert answer["detailed_capacity.7b"] == fit(estimate, gpu).copies == 3
    assert answer["detailed_capacity.70b"] == 0
    assert set(strategy.evaluate(GpuFacts()).values()) == {None}


def test_detailed_is_never_more_generous_with_more_context_or_sequences() -> None:
    facts = GpuFacts(vram_gb=80)
    counts = [
        make_strategy("detailed_capacity", context=context, batch=batch).evaluate(facts)
        for context, batch in ((2048, 1), (8192, 1), (8192, 8))
    ]
    small, medium, large = (count["detailed_capacity.7b"] for count in counts)
    assert isinstance(small, int) and isinstance(medium, int) and isinstance(large, int)
    assert small > medium > large


def test_a_table_gives_the_results_of_single_gpus() -> None:
    strategies = [
        make_strategy(name)
        for name in ("quantization_capable", "quantization_capacity", "detailed_capacity")
    ]
    facts = [GpuFacts.of(gpu) for gpu in REGISTRY.all] + [GpuFacts(), GpuFacts(vram_gb=14)]
    rows = [entry.model_dump() for entry in facts] * 3
    offers = pd.DataFrame(rows, index=range(1000, 1000 + len(rows)))
    enriched = apply_strategies(offers, strategies)
    assert list(enriched.index) == list(offers.index)
    assert enriched[list(offers.columns)].equals(offers)
    for position, entry in enumerate(facts * 3):
        for strategy in strategies:
            for column, value in strategy.evaluate(entry).items():
                found = enriched[column].iloc[position]
                assert (found is pd.NA) if value is None else found == value


def test_each_distinct_gpu_is_evaluated_once(monkeypatch: pytest.MonkeyPatch) -> None:
    strategy = make_strategy("quantization_capacity")
    seen: list[GpuFacts] = []
    original = type(strategy).evaluate

    def counted(self: object, facts: GpuFacts) -> object:
        seen.append(facts)
        return original(strategy, facts)

    monkeypatch.setattr(type(strategy), "evaluate", counted)
    offers = pd.DataFrame({"vram_gb": [24.0, 24.0, 48.0, None, None] * 100})
    apply_strategies(offers, [strategy])
    assert sorted(facts.vram_gb or 0 for facts in seen) == [0, 24, 48]


def test_unknown_and_absent_facts_are_null() -> None:
    offers = pd.DataFrame({"title": ["a", "b"]})
    enriched = apply_strategies(offers, [make_strategy("quantization_capacity")])
    assert enriched["quantization_capacity.7b"].isna().all()
    assert enriched["quantization_capacity"].isna().all()


def test_an_empty_table_gets_its_columns() -> None:
    strategy = make_strategy("quantization_capacity")
    enriched = apply_strategies(pd.DataFrame({"vram_gb": []}), [strategy])
    assert list(enriched.columns) == ["vram_gb", *strategy.columns()]


def test_existing_columns_need_force() -> None:
    strategy = make_strategy("quantization_capacity")
    once = apply_strategies(pd.DataFrame({"vram_gb": [14.0, 80.0]}), [strategy])
    once["quantization_capacity.7b"] = 99
    with pytest.raises(InputError, match="quantization_capacity"):
        apply_strategies(once, [strategy])
    again = apply_strategies(once, [strategy], force=True)
    assert list(again["quantization_capacity.7b"]) == [3, 22]
    assert again.columns.is_unique
