"""Rebuild all raw tables from the files of the data root, so that losing the DuckDB file is harmless."""

import logging
from collections.abc import Callable
from pathlib import Path

import duckdb

from quant_assets.artifacts.store import ArtifactStore
from quant_assets.bench.quality import QualityStore
from quant_assets.bench.results import ResultStore
from quant_assets.bench.variants import load_variants
from quant_assets.errors import QuantAssetsError
from quant_assets.gpus.registry import load_registry
from quant_assets.listings.store import LISTING_TABLES, ListingStore, ListingTable
from quant_assets.settings import Settings
from quant_assets.speed.model import load_speed_model
from quant_assets.speed.needs import load_grid
from quant_assets.warehouse.connection import Warehouse
from quant_assets.warehouse.loads.artifacts import load_artifacts, load_models, load_serving_needs
from quant_assets.warehouse.loads.listings import load_listing_history, load_listing_table
from quant_assets.warehouse.loads.measurements import (
    load_benchmarks,
    load_hosts,
    load_kv_cache_quality,
    load_variant_quality,
)
from quant_assets.warehouse.loads.placements import load_placements
from quant_assets.warehouse.loads.references import load_gpus, load_variants_table
from quant_assets.warehouse.loads.speed import load_speed_predictions

_Load = Callable[[duckdb.DuckDBPyConnection], int]
_log = logging.getLogger(__name__)


def warehouse_of(settings: Settings) -> Warehouse:
    """The warehouse of a data root; a writer that finds it missing or damaged rebuilds it."""
    return Warehouse(settings.warehouse, seed=lambda connection: _seed(connection, settings))


def rebuild_raw_tables(settings: Settings) -> dict[str, int]:
    """Load every raw table whose files exist, in one transaction; return row counts by table."""
    with warehouse_of(settings).write() as connection:
        return {table: load(connection) for table, load in _loads(settings).items()}


def _seed(connection: duckdb.DuckDBPyConnection, settings: Settings) -> None:
    """Load what is readable: an unreadable record leaves only its own table empty."""
    for table, load in _loads(settings).items():
        connection.begin()
        try:
            load(connection)
        except QuantAssetsError as error:
            connection.rollback()
            _log.warning("The table raw.%s is empty. %s", table, error)
        else:
            connection.commit()


def _loads(settings: Settings) -> dict[str, _Load]:
    artifacts, results = ArtifactStore(settings.artifacts), ResultStore(settings.results)
    loads: dict[str, _Load] = {
        "gpus": lambda connection: load_gpus(connection, load_registry()),
        "variants": lambda connection: load_variants_table(
            connection, load_variants(settings.variants_yaml)
        ),
        "artifacts": lambda connection: load_artifacts(connection, artifacts),
        "models": lambda connection: load_models(connection, artifacts),
        "serving_needs": lambda connection: load_serving_needs(
            connection,
            artifacts,
            load_variants(settings.variants_yaml),
            results,
            load_grid(settings.serving_grid),
        ),
        "benchmark_runs": lambda connection: load_benchmarks(connection, results),
        "speed_predictions": lambda connection: load_speed_predictions(
            connection, load_registry(), load_speed_model()
        ),
        "placements": lambda connection: load_placements(
            connection, artifacts, load_variants(settings.variants_yaml), load_registry()
        ),
        "variant_quality": lambda connection: load_variant_quality(
            connection, QualityStore(settings.results, settings.cache), settings.results
        ),
        "kv_cache_quality": lambda connection: load_kv_cache_quality(connection, settings.results),
        "hosts": lambda connection: load_hosts(connection, settings.results),
        "listing_history": lambda connection: load_listing_history(
            connection, ListingStore(settings.listings).price_history
        ),
    }
    for table in LISTING_TABLES:
        if (snapshot := ListingStore(settings.listings).snapshot(table)).exists():
            loads[table] = _listing_load(table, snapshot)
    return loads


def _listing_load(table: ListingTable, snapshot: Path) -> _Load:
    return lambda connection: load_listing_table(connection, table, snapshot)
