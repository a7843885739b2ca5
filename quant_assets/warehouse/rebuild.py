"""Rebuild the raw tables from the files of the data root; losing the DuckDB file loses nothing."""

from quant_assets.bench.quality import QualityStore
from quant_assets.bench.results import ResultStore
from quant_assets.bench.variants import load_variants
from quant_assets.listings.registry import load_registry
from quant_assets.quantize.store import ArtifactStore
from quant_assets.settings import Settings
from quant_assets.speed.needs import load_grid
from quant_assets.warehouse.connection import Warehouse
from quant_assets.warehouse.loads import (
    LISTING_SNAPSHOTS,
    load_artifacts,
    load_benchmarks,
    load_gpus,
    load_hosts,
    load_listing_history,
    load_listing_table,
    load_models,
    load_serving_needs,
    load_variant_quality,
    load_variants_table,
)
from quant_assets.warehouse.price_history import HISTORY_FOLDER


def rebuild_raw_tables(settings: Settings) -> dict[str, int]:
    """Load every raw table whose files exist, in one transaction; return row counts by table."""
    registry = load_registry()
    variants = load_variants(settings.variants_yaml)
    artifacts, results = ArtifactStore(settings.artifacts), ResultStore(settings.results)
    quality = QualityStore(settings.results, settings.cache)
    grid = load_grid(settings.serving_grid)
    with Warehouse(settings.warehouse).write() as connection:
        counts = {
            "gpus": load_gpus(connection, registry),
            "variants": load_variants_table(connection, variants),
            "artifacts": load_artifacts(connection, artifacts),
            "models": load_models(connection, artifacts),
            "serving_needs": load_serving_needs(connection, artifacts, variants, results, grid),
            "benchmark_runs": load_benchmarks(connection, results, registry),
            "variant_quality": load_variant_quality(connection, quality, settings.results),
            "hosts": load_hosts(connection, settings.results),
            "listing_history": load_listing_history(connection, settings.listings / HISTORY_FOLDER),
        }
        for table, file in LISTING_SNAPSHOTS.items():
            snapshot = settings.listings / file
            if snapshot.exists():
                counts[table] = load_listing_table(connection, table, snapshot)
    return counts
