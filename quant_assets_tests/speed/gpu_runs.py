"""A warehouse with the needs of a Llama 3 8B on three cards, to which tests add runs."""

from collections.abc import Iterator
from pathlib import Path

import duckdb
import pytest

from quant_assets.bench.variants import Variant
from quant_assets.capacity.reference_models import reference_models
from quant_assets.gpus.registry import GpuRegistry, load_registry
from quant_assets.speed.needs import (
    ServingGrid,
    ServingNeeds,
    StoredWeights,
    grid_needs,
    run_needs,
)
from quant_assets.warehouse.connection import Warehouse
from quant_assets.warehouse.loads.tables import replace_rows

SHAPE = reference_models()["Llama 3 8B"].shape
WEIGHTS = StoredWeights("a", 4_900_000_000)
VARIANTS = (
    Variant(name="q4", format="gguf", level="Q4_K_M"),
    Variant(name="gptq", format="gptq", level="4bit-g128"),
)
GRID = ServingGrid(contexts=(2048, 8192), batches=(1, 4))
CARDS = ("GeForce RTX 3090", "L4", "Radeon RX 7900 XTX")


def points() -> list[ServingNeeds]:
    """The needs of both variants at the points of the grid."""
    return [need for each in VARIANTS for need in grid_needs("m", SHAPE, each, WEIGHTS, GRID)]


def measured_points() -> list[ServingNeeds]:
    """The needs of `q4` at the lengths that the tests measure."""
    lengths = [(prompt, 128, batch) for prompt in (256, 1024, 4096) for batch in (1, 2)]
    return list(run_needs("m", SHAPE, VARIANTS[0], WEIGHTS, lengths))


@pytest.fixture
def gpu_warehouse(tmp_path: Path) -> Iterator[duckdb.DuckDBPyConnection]:
    """A writing connection to a warehouse with all needs and no runs."""
    with Warehouse(tmp_path / "w.duckdb").write() as connection:
        needs = [*points(), *measured_points()]
        replace_rows(connection, "serving_needs", [need.model_dump() for need in needs])
        yield connection


@pytest.fixture
def small_registry() -> GpuRegistry:
    """The cards, and one whose bandwidth is unknown."""
    known = load_registry().by_name
    unknown = known["L4"].model_copy(
        update={"canonical_name": "Unknown", "aliases": (), "driver_names": (),
                "memory_bandwidth_gb_s": None}
    )  # fmt: skip
    return GpuRegistry(all=(*(known[name] for name in CARDS), unknown))
