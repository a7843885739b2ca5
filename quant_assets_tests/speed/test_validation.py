"""The speed model is checked against the runs measured here."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb

from quant_assets.gpus.registry import GpuRegistry, load_registry
from quant_assets.settings import PROJECT_ROOT
from quant_assets.speed.model import load_speed_model
from quant_assets.speed.validation import check_own_runs, validate_speed_model
from quant_assets_tests.marts_world import insert, run
from quant_assets_tests.speed.gpu_runs import CARDS, measured_points

CUDA_CARDS = CARDS[:2]


def runs(registry: GpuRegistry, factor: Callable[[int], float]) -> list[dict[str, Any]]:
    """A run of every length on two cards, `factor(number)` times as fast as predicted."""
    rows = []
    for name in CUDA_CARDS:
        gpu = registry.by_name[name]
        for need in measured_points():
            works = [need.decode_workload("CUDA"), need.prefill_workload("CUDA")]
            decode, prefill = load_speed_model().predict([gpu, gpu], works)
            assert decode is not None and prefill is not None
            times = factor(len(rows))
            row = run(
                len(rows), variant="q4", device="cuda", gpu_name=name, gpu=name,
                prompt_tokens=need.prompt_tokens, generated_tokens=128, batch_size=need.batch_size,
                decode_tokens_per_s=decode.tokens_per_s * times,
                prefill_tokens_per_s=prefill.tokens_per_s * times,
            )  # fmt: skip
            rows.append(row)
    return rows


def test_runs_that_agree_with_each_other_pass(
    gpu_warehouse: duckdb.DuckDBPyConnection, small_registry: GpuRegistry
) -> None:
    insert(gpu_warehouse, "benchmark_runs", runs(small_registry, lambda n: 1 + n % 3 / 100))
    found = check_own_runs(gpu_warehouse, small_registry, load_speed_model())
    assert found.passed, found.problems
    assert (found.decode.all.n, found.prefill.all.n, found.not_predicted) == (12, 12, 0)
    assert set(found.decode.by_gpu) == set(CUDA_CARDS)
    assert set(found.decode.by_batch) == {"1", "2"}
    assert found.decode.all.coverage == 1.0


def test_runs_that_contradict_each_other_are_a_problem(
    gpu_warehouse: duckdb.DuckDBPyConnection, small_registry: GpuRegistry
) -> None:
    erratic = runs(small_registry, lambda n: 8.0 if n % 2 else 0.125)
    insert(gpu_warehouse, "benchmark_runs", erratic)
    found = check_own_runs(gpu_warehouse, small_registry, load_speed_model())
    assert not found.passed
    assert "coverage" in found.problems[0]


def test_a_run_is_not_predicted_from_itself(
    gpu_warehouse: duckdb.DuckDBPyConnection, small_registry: GpuRegistry
) -> None:
    (only, *_) = runs(small_registry, lambda _: 0.1)
    insert(gpu_warehouse, "benchmark_runs", [only])
    found = check_own_runs(gpu_warehouse, small_registry, load_speed_model())
    assert found.decode.all.median_error is not None
    assert found.decode.all.median_error > 5
    assert found.passed  # one run judges nothing


def test_without_runs_nothing_is_judged(
    gpu_warehouse: duckdb.DuckDBPyConnection, small_registry: GpuRegistry
) -> None:
    found = check_own_runs(gpu_warehouse, small_registry, load_speed_model())
    assert found.passed
    assert found.decode.all.n == 0


def test_published_runs_count_where_a_table_of_them_exists(
    gpu_warehouse: duckdb.DuckDBPyConnection, tmp_path: Path
) -> None:
    registry, model = load_registry(), load_speed_model()
    shipped = PROJECT_ROOT / "data" / "published_speeds.csv"
    found = validate_speed_model(gpu_warehouse, registry, model, shipped)
    assert found.published_runs is not None
    assert found.published_runs.decode.all.n > 100
    assert found.problems == []
    header, *rows = shipped.read_text().splitlines()
    tenfold = tmp_path / "runs.csv"
    column = header.split(",").index("tokens_per_s")
    wrong = [row.split(",") for row in rows if '"' not in row]
    for cells in wrong:
        cells[column] = str(10 * float(cells[column]))
    tenfold.write_text("\n".join([header, *(",".join(cells) for cells in wrong)]))
    worse = validate_speed_model(gpu_warehouse, registry, model, tenfold)
    assert any("published runs, decode at batch 1, median" in text for text in worse.problems)
    none = validate_speed_model(gpu_warehouse, registry, model, tmp_path / "absent.csv")
    assert (none.published_runs, none.problems) == (None, [])
