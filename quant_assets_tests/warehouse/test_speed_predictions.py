"""The table of predicted speeds: every GPU and point, as the speed model answers."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import duckdb
import pytest

from quant_assets.bench.variants import Variant
from quant_assets.gpus.registry import GpuRegistry, load_registry
from quant_assets.models.inspection import ModelShape
from quant_assets.speed.model import load_speed_model
from quant_assets.speed.needs import (
    ServingGrid,
    ServingNeeds,
    StoredWeights,
    grid_needs,
    run_needs,
)
from quant_assets.speed.own_runs import own_observations
from quant_assets.warehouse.connection import Warehouse
from quant_assets.warehouse.loads.speed import load_speed_predictions
from quant_assets.warehouse.loads.tables import replace_rows
from quant_assets_tests.marts_world import insert, run

SHAPE = ModelShape(
    architecture="llama",
    n_layers=32,
    hidden_size=4096,
    intermediate_size=14336,
    n_heads=32,
    kv_heads_by_layer=(8,) * 32,
    head_dim_k=128,
    head_dim_v=128,
    vocab_size=128256,
    context_length=8192,
    n_parameters=8_030_261_248,
    n_linear_parameters=6_979_321_856,
)
Q4 = Variant(name="q4", format="gguf", level="Q4_K_M")
GPTQ = Variant(name="gptq", format="gptq", level="4bit-g128")
WEIGHTS = StoredWeights("a", 4_900_000_000)
GRID = ServingGrid(contexts=(2048, 8192), batches=(1, 4))
NAMES = ("GeForce RTX 3090", "L4", "Radeon RX 7900 XTX")
RUN = {
    "variant": "q4", "device": "cuda", "gpu_name": "NVIDIA L4", "gpu": "L4",
    "prompt_tokens": 1024, "generated_tokens": 128, "batch_size": 2,
}  # fmt: skip


@pytest.fixture
def connection(tmp_path: Path) -> Iterator[duckdb.DuckDBPyConnection]:
    with Warehouse(tmp_path / "w.duckdb").write() as writing:
        needs = [
            *grid_needs("m", SHAPE, Q4, WEIGHTS, GRID),
            *grid_needs("m", SHAPE, GPTQ, WEIGHTS, GRID),
            *run_needs("m", SHAPE, Q4, WEIGHTS, [(1024, 128, 2)]),
        ]
        replace_rows(writing, "serving_needs", [need.model_dump() for need in needs])
        yield writing


@pytest.fixture
def registry() -> GpuRegistry:
    """Three cards of different makers, and one whose bandwidth is unknown."""
    known = load_registry().by_name
    unknown = known["L4"].model_copy(
        update={"canonical_name": "Unknown", "aliases": (), "memory_bandwidth_gb_s": None}
    )
    return GpuRegistry(all=(*(known[name] for name in NAMES), unknown))


def test_every_gpu_meets_every_point(
    connection: duckdb.DuckDBPyConnection, registry: GpuRegistry
) -> None:
    assert load_speed_predictions(connection, registry, load_speed_model()) == 3 * 2 * 4
    found = connection.execute(
        "select * exclude (model) from raw.speed_predictions order by gpu, variant desc, "
        "context_tokens, batch_size"
    ).fetchall()
    points = [
        *grid_needs("m", SHAPE, Q4, WEIGHTS, GRID),
        *grid_needs("m", SHAPE, GPTQ, WEIGHTS, GRID),
    ]
    expected = [row for name in sorted(NAMES) for row in predicted(registry, name, points)]
    for row, wanted in zip(found, expected, strict=True):
        assert row == tuple(
            pytest.approx(value) if isinstance(value, float) else value for value in wanted
        )


def predicted(
    registry: GpuRegistry, name: str, points: list[ServingNeeds]
) -> Iterator[tuple[Any, ...]]:
    """The rows of one GPU, straight from the speed model."""
    gpu = registry.by_name[name]
    backend = "HIP" if gpu.vendor == "AMD" else "CUDA"
    model = load_speed_model()
    for point in points:
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
    connection: duckdb.DuckDBPyConnection, registry: GpuRegistry
) -> None:
    runs = [
        run(1, **RUN, decode_tokens_per_s=90.0, prefill_tokens_per_s=1500.0),
        run(2, **RUN, decode_tokens_per_s=95.0, prefill_tokens_per_s=None),
        run(3, **RUN, decode_tokens_per_s=20.0, contended=True),
        run(4, **{**RUN, "gpu": "Other"}, decode_tokens_per_s=20.0),
        run(5, **{**RUN, "device": "cpu", "gpu": None}, decode_tokens_per_s=2.0),
        run(6, **{**RUN, "backend": "endpoint"}, decode_tokens_per_s=2.0),
    ]
    insert(connection, "benchmark_runs", runs)
    observations = own_observations(connection, registry)
    assert [(o.gpu, o.workload.phase, o.tokens_per_s) for o in observations] == [
        ("L4", "decode", 90.0), ("L4", "prefill", 1500.0), ("L4", "decode", 95.0),
    ]  # fmt: skip
    work = observations[0].workload
    assert (work.batch, work.tokens, work.weight_type, work.backend) == (2, 2, "Q4_K", "CUDA")
    assert work.kv_bytes == 2 * (1024 + 64) * 2 * 32 * 8 * 128 * 2
    assert observations[1].workload.tokens == 2 * 1024


def test_needs_of_an_earlier_version_are_left_out(
    connection: duckdb.DuckDBPyConnection, registry: GpuRegistry
) -> None:
    connection.execute("update raw.serving_needs set weight_type = null").fetchall()
    assert load_speed_predictions(connection, registry, load_speed_model()) == 0
    assert own_observations(connection, registry) == []
