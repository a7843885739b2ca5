"""Load the raw tables from what the data root holds; a load replaces its table's rows, whole."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import duckdb
import pandas as pd

from quant_assets.bench.results import ResultStore
from quant_assets.bench.variants import Variant
from quant_assets.listings.registry import GpuRegistry
from quant_assets.quantize.store import ArtifactStore

ListingTable = Literal["raw_listings", "enriched_listings", "quarantined_listings"]
LISTING_SNAPSHOTS: dict[ListingTable, str] = {
    "raw_listings": "raw/rows.parquet",
    "quarantined_listings": "normalized/quarantined.parquet",
    "enriched_listings": "enriched/rows.parquet",
}
"""The Parquet file of each listing table, in the listings folder of the data root."""

_GPU_COLUMNS = (
    "canonical_name", "vendor", "architecture", "vram_gb", "memory_bandwidth_gb_s", "tdp_w",
    "fp16_dense_tflops", "int8_dense_tops", "compute_capability", "release_year",
)  # fmt: skip
_VARIANT_COLUMNS = ("format", "level", "cache_type_k", "cache_type_v", "description")


def load_gpus(connection: duckdb.DuckDBPyConnection, registry: GpuRegistry) -> int:
    """Load `raw.gpus`; return its row count."""
    rows = [{name: getattr(gpu, name) for name in _GPU_COLUMNS} for gpu in registry.all]
    return _replace_rows(connection, "gpus", rows)


def load_variants_table(
    connection: duckdb.DuckDBPyConnection, variants: Mapping[str, Variant]
) -> int:
    """Load `raw.variants`; return its row count."""
    rows = [
        {"variant": name, **{column: getattr(variant, column) for column in _VARIANT_COLUMNS}}
        for name, variant in variants.items()
    ]
    return _replace_rows(connection, "variants", rows)


def load_artifacts(connection: duckdb.DuckDBPyConnection, store: ArtifactStore) -> int:
    """Load `raw.artifacts` from the manifests of the store; return its row count."""
    rows = [
        {
            "job_id": manifest.job_id,
            "model": manifest.job.model_name,
            "format": manifest.job.target_format,
            "level": manifest.job.level,
            "source_identity": manifest.job.source_identity,
            "size_bytes": manifest.size_bytes,
            "generated_text": manifest.validation.get("generated_text"),
            "path": str(store.folder(manifest.job_id) / manifest.files[0].name),
            **manifest.model_dump(
                include={
                    "status", "rejection", "source_provenance", "n_parameters", "bits_per_weight",
                    "perplexity", "seconds", "peak_rss_bytes", "created_at",
                }
            ),
        }
        for manifest in store.all()
    ]  # fmt: skip
    return _replace_rows(connection, "artifacts", rows)


def load_benchmarks(connection: duckdb.DuckDBPyConnection, results: ResultStore) -> int:
    """Load `raw.benchmark_runs` from the result files; return its row count."""
    return _replace_rows(connection, "benchmark_runs", [r.flat() for r in results.records()])


def load_listing_table(
    connection: duckdb.DuckDBPyConnection, table: ListingTable, parquet: Path
) -> int:
    """Replace one listing table by the content of a Parquet snapshot; return its row count."""
    assert table in LISTING_SNAPSHOTS  # a table name cannot be bound as a parameter
    connection.execute(
        f"create or replace table raw.{table} as select * from read_parquet(?)",  # noqa: S608
        [str(parquet)],
    ).fetchall()
    return _count(connection, table)


def row_counts(connection: duckdb.DuckDBPyConnection) -> dict[str, int]:
    """Rows of every table and view of the warehouse, by `schema.name`."""
    names = connection.execute(
        "select table_schema, table_name from information_schema.tables "
        "where table_catalog = current_database() order by table_schema, table_name"
    ).fetchall()
    return {
        f"{schema}.{name}": _scalar(connection, f'select count(*) from "{schema}"."{name}"')  # noqa: S608
        for schema, name in names
    }


def _replace_rows(
    connection: duckdb.DuckDBPyConnection, table: str, rows: Iterable[Mapping[str, Any]]
) -> int:
    frame = pd.DataFrame(list(rows))
    connection.execute(f"delete from raw.{table}").fetchall()  # noqa: S608
    if not frame.empty:
        connection.register("incoming_rows", frame)
        insert = f"insert into raw.{table} by name select * from incoming_rows"  # noqa: S608
        connection.execute(insert).fetchall()
        connection.unregister("incoming_rows")
    return _count(connection, table)


def _count(connection: duckdb.DuckDBPyConnection, table: str) -> int:
    return _scalar(connection, f"select count(*) from raw.{table}")  # noqa: S608


def _scalar(connection: duckdb.DuckDBPyConnection, query: str) -> int:
    # A result must be read to its end before the connection runs the next statement.
    return int(connection.execute(query).fetchall()[0][0])
