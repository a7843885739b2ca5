"""The table of predicted speeds: every GPU and point, as the speed model answers."""

from collections.abc import Iterator
from typing import Any

import duckdb
import pytest

from quant_assets.gpus.registry import GpuRegistry
from quant_assets.speed.model import load_speed_model
from quant_assets.speed.own_runs import own_runs
from quant_assets.warehouse.loads.speed import load_speed_predictions
from quant_assets_tests.marts_world import insert, run
from quant_assets_tests.speed.gpu_runs import CARDS, measured_points, points

RUN = {
    "variant": "q4", "device": "cuda", "gpu_name": "NVIDIA L4", "gpu": "L4",
    "prompt_tokens": 1024, "generated_tokens": 128, "batch_size": 2,
}  # fmt: skip


def test_every_gpu_meets_every_point(
    gpu_warehouse: duckdb.DuckDBPyConnection, small_registry: GpuRegistry
) -> None:
    assert load_speed_predictions(gpu_warehouse, small_registry, load_speed_model()) == 3 * 2 * 4
    found = gpu_warehouse.execute(
        "select * exclude (model) from raw.speed_predictions order by gpu, variant desc, "
        "context_tokens, batch_size"
    ).fetchall()
    expected = [row for name in sorted(CARDS) for row in predicted(small_registry, name)]
    for row, wanted in zip(found, expected, strict=True):
        assert row == tuple(
            pytest.approx(value) if isinstance(value, float) else value for value in wanted
        )


def predicted(registry: GpuRegistry, name: str) -> Iterator[tuple[Any, ...]]:
    """The rows of one GPU, straight from the speed model."""
    gpu = registry.by_name[name]
    backend = "HIP" if gpu.vendor == "AMD" else "CUDA"
    model = load_speed_model()
    for point in points():
        works = [point.decode_workload(backend), point.prefill_workload(backend)]
        decode, prefill = model.predict([gpu, gpu], works)
        assert decode is not None
        assert prefill is not None
        yield (
            name, point.variant, point.context_tokens, point.batch_size,
            decode.tokens_per_s, decode.low, decode.high, decode.rests_on, decode.runs,
            prefill.tokens_per_s, prefill.low, prefill.high, prefill.rests_on, prefill.runs,
        )  # fmt: skip


def test_only_uncontended_runs_on_cards_of_the_registry_count(
    gpu_warehouse: duckdb.DuckDBPyConnection, small_registry: GpuRegistry
) -> None:
    runs = [
        run(1, **RUN, decode_tokens_per_s=90.0, prefill_tokens_per_s=1500.0),
        run(2, **RUN, decode_tokens_per_s=95.0, prefill_tokens_per_s=None),
        run(3, **RUN, decode_tokens_per_s=20.0, contended=True),
        run(4, **{**RUN, "gpu": "Other"}, decode_tokens_per_s=20.0),
        run(5, **{**RUN, "device": "cpu", "gpu": None}, decode_tokens_per_s=2.0),
        run(6, **{**RUN, "backend": "endpoint"}, decode_tokens_per_s=2.0),
    ]
    insert(gpu_warehouse, "benchmark_runs", runs)
    observations = [found.observation for found in own_runs(gpu_warehouse, small_registry)]
    assert [(o.gpu, o.workload.phase, o.tokens_per_s) for o in observations] == [
        ("L4", "decode", 90.0), ("L4", "prefill", 1500.0), ("L4", "decode", 95.0),
    ]  # fmt: skip
    work = observations[0].workload
    assert (work.batch, work.tokens, work.weight_type, work.backend) == (2, 2, "Q4_K", "CUDA")
    assert work.kv_bytes == 2 * (1024 + 64) * 2 * 32 * 8 * 128 * 2
    assert observations[1].workload.tokens == 2 * 1024


def test_own_runs_move_and_narrow_what_is_predicted_on_their_gpu(
    gpu_warehouse: duckdb.DuckDBPyConnection, small_registry: GpuRegistry
) -> None:
    before = decoding(gpu_warehouse, small_registry)
    slower = [
        run(
            number, **{**RUN, "prompt_tokens": need.prompt_tokens, "batch_size": need.batch_size},
            decode_tokens_per_s=0.7 * decoded.tokens_per_s, prefill_tokens_per_s=None,
        )
        for number, need in enumerate(measured_points())
        for decoded in load_speed_model().predict(
            [small_registry.by_name["L4"]], [need.decode_workload("CUDA")]
        )
        if decoded is not None
    ]  # fmt: skip
    insert(gpu_warehouse, "benchmark_runs", slower)
    after = decoding(gpu_warehouse, small_registry)
    assert {key: row for key, row in after.items() if key[0] != "L4"} == {
        key: row for key, row in before.items() if key[0] != "L4"
    }
    for key in (("L4", "q4", context, batch) for context in (2048, 8192) for batch in (1, 4)):
        (speed, low, high, *_), (own, own_low, own_high, basis, runs) = before[key], after[key]
        assert 0.65 < own / speed < 0.85
        assert own_high / own_low < high / low
        assert (basis, runs) == ("this GPU", len(slower))
    # They were runs of llama.cpp.
    assert after["L4", "gptq", 2048, 1] == before["L4", "gptq", 2048, 1]


def decoding(
    connection: duckdb.DuckDBPyConnection, registry: GpuRegistry
) -> dict[tuple[Any, ...], tuple[Any, ...]]:
    """Speed, interval, basis and runs by GPU, variant, context and batch."""
    load_speed_predictions(connection, registry, load_speed_model())
    rows = connection.execute(
        "select gpu, variant, context_tokens, batch_size, decode_tokens_per_s, "
        "decode_tokens_per_s_low, decode_tokens_per_s_high, decode_rests_on, decode_runs "
        "from raw.speed_predictions"
    ).fetchall()
    return {row[:4]: row[4:] for row in rows}


def test_needs_of_an_earlier_version_are_left_out(
    gpu_warehouse: duckdb.DuckDBPyConnection, small_registry: GpuRegistry
) -> None:
    gpu_warehouse.execute("update raw.serving_needs set weight_type = null").fetchall()
    assert load_speed_predictions(gpu_warehouse, small_registry, load_speed_model()) == 0
    assert own_runs(gpu_warehouse, small_registry) == []
