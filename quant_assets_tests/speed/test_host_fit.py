"""The fit of a processor's speed to few of its runs, on made-up processors with known speeds."""

import dataclasses
import statistics

import numpy as np
import pytest

from quant_assets.speed.host_fit import HostRun, cells_to_measure, predict_host
from quant_assets_tests.speed.made_processors import (
    BATCHES,
    BITS,
    CACHES,
    Processor,
    grid,
    made_cell,
    processor,
    runs_on,
)

NOISE = 0.01
SEEDS = range(8)
CELLS = grid()
FIFTH = cells_to_measure(CELLS, round(len(CELLS) / 5))


def measured_fifth(made: Processor, seed: int) -> list[HostRun]:
    return runs_on(made, [CELLS[place] for place in FIFTH], NOISE, seed)


def test_a_fifth_of_the_cells_predicts_the_others():
    errors, inside, widths = [], [], []
    for seed in SEEDS:
        made = processor(seed)
        for cell, prediction in zip(
            CELLS, predict_host(measured_fifth(made, seed), CELLS), strict=True
        ):
            if prediction.basis == "measured":
                continue
            true = made.tokens_per_s(cell)
            errors.append(abs(prediction.tokens_per_s / true - 1))
            inside.append(prediction.low <= true <= prediction.high)
            widths.append(prediction.high / prediction.low)
    assert statistics.median(errors) < 0.05
    assert np.quantile(errors, 0.9) < 0.15
    assert statistics.mean(inside) > 0.8
    assert statistics.mean(widths) < 1.6


def test_the_choice_from_a_fifth_loses_little():
    losses = []
    for seed in SEEDS:
        made = processor(seed)
        predictions = predict_host(measured_fifth(made, seed), CELLS)
        for batch in BATCHES:
            places = [place for place, cell in enumerate(CELLS) if cell.batch == batch]
            chosen = max(places, key=lambda place: predictions[place].tokens_per_s)
            best = max(made.tokens_per_s(CELLS[place]) for place in places)
            losses.append(1 - made.tokens_per_s(CELLS[chosen]) / best)
    assert statistics.median(losses) < 0.01
    assert statistics.mean(losses) < 0.03


def test_the_design_covers_every_type_and_batch_size_and_beats_taking_the_first_cells():
    chosen = [CELLS[place] for place in FIFTH]
    assert len(set(FIFTH)) == len(FIFTH) == 19
    assert {cell.batch for cell in chosen} == set(BATCHES)
    assert {cell.weights[0].type_name for cell in chosen} == set(BITS)
    assert {cell.k_type for cell in chosen} == {cell.v_type for cell in chosen}
    assert {cell.k_type for cell in chosen} == {"F16", "Q8_0", "Q4_0"}
    made = processor(1)

    def error(cells: list[int]) -> float:
        runs = runs_on(made, [CELLS[place] for place in cells], NOISE)
        predictions = predict_host(runs, CELLS)
        return statistics.mean(
            abs(item.tokens_per_s / made.tokens_per_s(cell) - 1)
            for item, cell in zip(predictions, CELLS, strict=True)
        )

    assert error(FIFTH) < error(list(range(19)))


def test_the_design_of_few_cells_is_short_and_that_of_many_has_all():
    assert len(cells_to_measure(CELLS, 1)) == 1
    assert sorted(cells_to_measure(CELLS[:5], 9)) == [0, 1, 2, 3, 4]


def test_a_measured_cell_has_its_own_speed_and_the_narrower_interval():
    made = processor(2)
    fifth = measured_fifth(made, 2)
    odd = dataclasses.replace(fifth[0], tokens_per_s=fifth[0].tokens_per_s * 1.5)
    predictions = predict_host([odd, *fifth[1:]], CELLS)
    own = predictions[FIFTH[0]]
    assert own.basis == "measured" and own.runs == 1
    assert own.tokens_per_s == pytest.approx(odd.tokens_per_s)
    others = [item for item in predictions if item.basis == "estimated"]
    assert {item.runs for item in others} == {len(fifth)}
    assert own.high / own.low < min(item.high / item.low for item in others)


def test_repeated_runs_of_a_cell_count_together_and_those_of_an_older_build_less():
    cell = made_cell("Q8_0", CACHES[0], 1)
    own = [HostRun(cell, speed) for speed in (99.0, 100.0, 104.0)]
    (both,) = predict_host(own, [cell])
    assert (both.basis, both.runs) == ("measured", 3)
    assert both.tokens_per_s == pytest.approx(100.0)
    (older,) = predict_host([HostRun(cell, 100.0, current_build=False)], [cell])
    assert older.basis == "estimated"
    assert older.low < 95 and older.high > 105


def test_one_run_predicts_the_machine_with_an_interval_that_admits_how_little_it_is():
    made = processor(3)
    (run,) = runs_on(made, [CELLS[0]])
    predictions = predict_host([run], CELLS)
    widths = [item.high / item.low for item in predictions]
    assert widths[0] < 1.1
    other_batches = [
        width for width, cell in zip(widths, CELLS, strict=True) if cell.batch != CELLS[0].batch
    ]
    assert min(other_batches) > 2
    inside = [
        item.low <= made.tokens_per_s(cell) <= item.high
        for item, cell in zip(predictions, CELLS, strict=True)
    ]
    assert statistics.mean(inside) > 0.8


def test_a_type_without_runs_borrows_from_its_neighbours():
    # On this processor K-quants take twice as long as their bytes suggest.
    plain = processor(4)
    slow = {name: 2.0 if name.endswith("_K") else 1.0 for name in BITS}
    made = plain._replace(one=slow, several=slow)
    cells = [made_cell(level, CACHES[0], 1) for level in BITS]
    seen = [cell for cell in cells if cell.weights[0].type_name != "Q5_K"]
    runs = runs_on(made, seen)
    unseen = next(cell for cell in cells if cell not in seen)
    (prediction,) = predict_host(runs, [unseen])
    true = made.tokens_per_s(unseen)
    assert prediction.tokens_per_s == pytest.approx(true, rel=0.25)
    assert prediction.low < true < prediction.high
    other_family = dataclasses.replace(
        unseen, weights=(unseen.weights[0]._replace(type_name="Q5_1"), *unseen.weights[1:])
    )
    (quick,) = predict_host(runs, [other_family])
    assert quick.tokens_per_s > 1.15 * prediction.tokens_per_s


def test_a_longer_context_costs_attention_and_its_interval_grows():
    made = processor(5)
    short = [made_cell("Q4_0", caches, batch) for caches in CACHES for batch in BATCHES]
    runs = runs_on(made, short, NOISE)
    near, far = predict_host(
        runs, [made_cell("Q4_0", CACHES[0], 4, depth) for depth in (160, 4096)]
    )
    assert far.tokens_per_s < near.tokens_per_s
    assert far.high / far.low > near.high / near.low
    true = made.tokens_per_s(made_cell("Q4_0", CACHES[0], 4, 4096))
    assert far.low < true < far.high


def test_runs_of_another_model_inform_and_its_own_decide():
    made = processor(6)
    others = [dataclasses.replace(run.cell, model="other") for run in measured_fifth(made, 6)]
    cells = [made_cell(level, CACHES[0], 1) for level in BITS]
    from_others = predict_host(runs_on(made, others, NOISE), cells)
    for item, cell in zip(from_others, cells, strict=True):
        assert item.low < made.tokens_per_s(cell) < item.high
    own = HostRun(cells[0], made.tokens_per_s(cells[0]) * 0.6)
    slower = predict_host([*runs_on(made, others, NOISE), own], cells)
    assert all(
        later.tokens_per_s < earlier.tokens_per_s
        for earlier, later in zip(from_others, slower, strict=True)
    )


def test_runs_that_scatter_widen_the_intervals():
    made = processor(7)
    quiet = measured_fifth(made, 7)
    scattered = [dataclasses.replace(run, relative_spread=0.1) for run in quiet]
    narrow, wide = (
        statistics.median(item.high / item.low for item in predict_host(runs, CELLS))
        for runs in (quiet, scattered)
    )
    assert wide > 1.2 * narrow
