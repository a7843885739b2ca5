"""Raw tables of the warehouse: references, and the results of all models together."""

from collections.abc import Callable, Iterable, Mapping

import dagster as dg
import duckdb

from quant_assets.assets.conventions import (
    FOLLOWS_ITS_INPUTS,
    OWNERS,
    WAREHOUSE_GROUP,
    WAREHOUSE_POOL,
    artifact_keys,
    benchmark_results_key,
    variant_quality_key,
)
from quant_assets.assets.previews import table_metadata
from quant_assets.bench.quality import QualityStore
from quant_assets.bench.variants import Variant
from quant_assets.gpus.registry import load_registry
from quant_assets.listings.store import ListingStore
from quant_assets.models.config import ModelConfig
from quant_assets.resources.failures import clear_failures
from quant_assets.resources.stores import DataRoot
from quant_assets.speed.model import load_speed_model
from quant_assets.speed.needs import load_grid
from quant_assets.warehouse.loads.artifacts import load_artifacts, load_models, load_serving_needs
from quant_assets.warehouse.loads.listings import load_listing_history
from quant_assets.warehouse.loads.measurements import (
    load_benchmarks,
    load_hosts,
    load_kv_cache_quality,
    load_variant_quality,
)
from quant_assets.warehouse.loads.placements import load_placements
from quant_assets.warehouse.loads.references import load_gpus, load_variants_table
from quant_assets.warehouse.loads.speed import load_speed_predictions

Load = Callable[[duckdb.DuckDBPyConnection, DataRoot], int]


def build_table(
    name: str,
    description: str,
    load: Load,
    deps: Iterable[dg.AssetKey | str] = (),
    *,
    table: str | None = None,
) -> dg.AssetsDefinition:
    """The asset of the table `raw.<name>` (or `raw.<table>`), replaced as a whole by `load`."""

    @dg.asset(
        key=name,
        deps=[dg.AssetDep(key, partition_mapping=dg.AllPartitionMapping()) for key in deps],
        group_name=WAREHOUSE_GROUP,
        owners=OWNERS,
        kinds={"duckdb"},
        pool=WAREHOUSE_POOL,
        description=description,
        automation_condition=FOLLOWS_ITS_INPUTS,
    )
    def load_table(data_root: DataRoot) -> dg.MaterializeResult[None]:
        warehouse = data_root.warehouse
        with clear_failures(), warehouse.write() as connection:
            load(connection, data_root)
            metadata = table_metadata(connection, f"raw.{table or name}")
        return dg.MaterializeResult(
            metadata={"database": dg.MetadataValue.path(warehouse.path), **metadata}
        )

    return load_table


def _load_quality(connection: duckdb.DuckDBPyConnection, root: DataRoot) -> int:
    """Load both tables of quality; return their row count."""
    results = root.settings.results
    store = QualityStore(results, root.settings.cache)
    rows = load_variant_quality(connection, store, results)
    return rows + load_kv_cache_quality(connection, results)


def build_tables(
    models: Iterable[ModelConfig], variants: Mapping[str, Variant]
) -> list[dg.AssetsDefinition]:
    """The reference tables, and the tables of the results of all models."""
    models = list(models)
    artifacts = [key for model in models for key in artifact_keys(model, variants)]
    benchmarks = [benchmark_results_key(model) for model in models]
    return [
        build_table(
            "gpus",
            "The GPU registry: memory, bandwidth, power and throughput of every known GPU.",
            lambda connection, _: load_gpus(connection, load_registry()),
        ),
        build_table(
            "variants",
            "How artifacts are run: level and KV-cache types, from the variants file.",
            lambda connection, _: load_variants_table(connection, variants),
        ),
        build_table(
            "artifacts",
            "The manifests of the finished artifacts of all models.",
            lambda connection, root: load_artifacts(connection, root.artifacts),
            artifacts,
        ),
        build_table(
            "models",
            "The shape of every model that has an artifact: layers, heads, parameters, context.",
            lambda connection, root: load_models(connection, root.artifacts),
            artifacts,
        ),
        build_table(
            "serving_needs",
            "Bytes read, operations and memory of every variant per context length and batch size.",
            lambda connection, root: load_serving_needs(
                connection,
                root.artifacts,
                variants,
                root.results,
                load_grid(root.settings.serving_grid),
            ),
            ["artifacts", "variants", "benchmark_runs"],
        ),
        build_table(
            "benchmark_runs",
            "All benchmark records of all models, from the result files.",
            lambda connection, root: load_benchmarks(connection, root.results),
            benchmarks,
        ),
        build_table(
            "speed_predictions",
            (
                "Decoding and prefill of every variant on every GPU of the registry, as the speed "
                "model predicts them, with intervals; own runs on a GPU take precedence there."
            ),
            lambda connection, _: load_speed_predictions(
                connection, load_registry(), load_speed_model()
            ),
            ["serving_needs", "benchmark_runs", "gpus"],
        ),
        build_table(
            "placements",
            (
                "How many copies of every variant each GPU of the registry holds, or over how many "
                "of them a copy is split."
            ),
            lambda connection, root: load_placements(
                connection, root.artifacts, variants, load_registry()
            ),
            ["serving_needs", "variants", "gpus"],
        ),
        build_table(
            "quality_measurements",
            "Perplexity, divergence and obedience of all variants, and what their KV cache types "
            "cost, from the quality files.",
            _load_quality,
            [variant_quality_key(model) for model in models],
            table="variant_quality",
        ),
        build_table(
            "hosts",
            "Measured peaks of the machines that benchmarks ran on.",
            lambda connection, root: load_hosts(connection, root.settings.results),
            ["host_peaks"],
        ),
        build_table(
            "listing_history",
            "Every change of an offer or its price, with the time at which it was seen.",
            lambda connection, root: load_listing_history(
                connection, ListingStore(root.settings.listings).price_history
            ),
            ["enriched_listings"],
        ),
    ]
