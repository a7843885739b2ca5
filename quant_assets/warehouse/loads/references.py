"""Reference tables: the GPU registry and the variants."""

from collections.abc import Mapping

import duckdb

from quant_assets.bench.variants import Variant
from quant_assets.gpus.registry import GpuRegistry
from quant_assets.warehouse.loads.tables import replace_rows

_GPU_COLUMNS = (
    "canonical_name", "vendor", "architecture", "vram_gb", "memory_bandwidth_gb_s", "tdp_w",
    "fp16_dense_tflops", "int8_dense_tops", "compute_capability", "release_year",
)  # fmt: skip
_VARIANT_COLUMNS = ("format", "level", "cache_type_k", "cache_type_v", "description")


def load_gpus(connection: duckdb.DuckDBPyConnection, registry: GpuRegistry) -> int:
    """Load `raw.gpus`; return its row count."""
    rows = [{name: getattr(gpu, name) for name in _GPU_COLUMNS} for gpu in registry.all]
    return replace_rows(connection, "gpus", rows)


def load_variants_table(
    connection: duckdb.DuckDBPyConnection, variants: Mapping[str, Variant]
) -> int:
    """Load `raw.variants`; return its row count."""
    rows = [
        {"variant": name, **{column: getattr(variant, column) for column in _VARIANT_COLUMNS}}
        for name, variant in variants.items()
    ]
    return replace_rows(connection, "variants", rows)
