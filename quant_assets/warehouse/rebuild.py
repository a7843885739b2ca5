"""Rebuild the raw tables from the files of the data root; losing the DuckDB file loses nothing."""

from quant_assets.bench.results import ResultStore
from quant_assets.bench.variants import load_variants
from quant_assets.listings.registry import load_registry
from quant_assets.quantize.store import ArtifactStore
from quant_assets.settings import Settings
from quant_assets.warehouse.connection import Warehouse
from quant_assets.warehouse.loads import (
    LISTING_SNAPSHOTS,
    load_artifacts,
    load_benchmarks,
    load_gpus,
    load_listing_table,
    load_variants_table,
)


def rebuild_raw_tables(settings: Settings) -> dict[str, int]:
    """Load every raw table whose files exist, in one transaction; return row counts by table."""
    with Warehouse(settings.warehouse).write() as connection:
        counts = {
            "gpus": load_gpus(connection, load_registry()),
            "variants": load_variants_table(connection, load_variants(settings.variants_yaml)),
            "artifacts": load_artifacts(connection, ArtifactStore(settings.artifacts)),
            "benchmark_runs": load_benchmarks(connection, ResultStore(settings.results)),
        }
        for table, file in LISTING_SNAPSHOTS.items():
            snapshot = settings.listings / file
            if snapshot.exists():
                counts[table] = load_listing_table(connection, table, snapshot)
    return counts
