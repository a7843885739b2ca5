"""The raw tables of the warehouse that join all models: artifacts, benchmark runs, references."""

from collections.abc import Callable, Iterable, Mapping

import dagster as dg
import duckdb

from quant_assets.assets.artifacts import OWNERS, artifact_keys
from quant_assets.assets.benchmarks import benchmark_results_key
from quant_assets.assets.previews import table_metadata
from quant_assets.assets.quality import variant_quality_key
from quant_assets.bench.quality import QualityStore
from quant_assets.bench.variants import Variant
from quant_assets.gpus.registry import load_registry
from quant_assets.host.devices import available_physical_cores
from quant_assets.listings.store import ListingStore
from quant_assets.models.config import ModelConfig
from quant_assets.resources.backend import DEVICE_POOL
from quant_assets.resources.failures import clear_failures
from quant_assets.resources.stores import DataRoot
from quant_assets.speed.host_peaks import measure_host_peaks
from quant_assets.speed.needs import load_grid
from quant_assets.warehouse.loads import (
    load_artifacts,
    load_benchmarks,
    load_gpus,
    load_hosts,
    load_listing_history,
    load_models,
    load_serving_needs,
    load_variant_quality,
    load_variants_table,
)

WAREHOUSE_POOL = "warehouse"
GROUP = "warehouse"
HOST_GROUP = "host"

FOLLOWS_ITS_INPUTS = dg.AutomationCondition.eager().without(
    # Not every partition of a grid is ever filled; a table takes what there is.
    ~dg.AutomationCondition.any_deps_missing()
)

Load = Callable[[duckdb.DuckDBPyConnection, DataRoot], int]


def build_table(
    name: str,
    description: str,
    load: Load,
    deps: Iterable[dg.AssetKey | str] = (),
    *,
    table: str | None = None,
) -> dg.AssetsDefinition:
    """An asset that is the table `raw.<name>` (or `raw.<table>`), loaded whole by `load`."""

    @dg.asset(
        key=name,
        deps=[dg.AssetDep(key, partition_mapping=dg.AllPartitionMapping()) for key in deps],
        group_name=GROUP,
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


def build_tables(
    models: Iterable[ModelConfig], variants: Mapping[str, Variant]
) -> list[dg.AssetsDefinition]:
    """The reference tables, and the tables that join what all models produced."""
    models = list(models)
    artifacts = [key for model in models for key in artifact_keys(model, variants)]
    benchmarks = [benchmark_results_key(model) for model in models]
    return [
        build_table(
            "gpus",
            "The GPU registry: memory, bandwidth, power and throughput of every known card.",
            lambda connection, _: load_gpus(connection, load_registry()),
        ),
        build_table(
            "variants",
            "How artifacts are run: level and KV-cache types, from the variants file.",
            lambda connection, _: load_variants_table(connection, variants),
        ),
        build_table(
            "artifacts",
            "The manifests of all finished artifacts of all models.",
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
            "What every variant reads, computes and keeps at each context length and batch.",
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
            "quality_measurements",
            "Perplexity, divergence and obedience of all variants, from the quality files.",
            lambda connection, root: load_variant_quality(
                connection,
                QualityStore(root.settings.results, root.settings.cache),
                root.settings.results,
            ),
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
            "Every change of an offer or its price, by the time it was seen.",
            lambda connection, root: load_listing_history(
                connection, ListingStore(root.settings.listings).price_history
            ),
            ["enriched_listings"],
        ),
    ]


def build_host_peaks() -> dg.AssetsDefinition:
    """The asset that measures what this machine's memory and processor can do at most."""

    @dg.asset(
        key="host_peaks",
        group_name=HOST_GROUP,
        owners=OWNERS,
        kinds={"json"},
        pool=DEVICE_POOL,
        description=(
            "Memory bandwidth and dense matrix throughput of this machine. Measured runs over these "
            "peaks give the efficiency by which speeds of other hardware are estimated."
        ),
    )
    def host_peaks(data_root: DataRoot) -> dg.MaterializeResult[None]:
        with clear_failures():
            peaks = measure_host_peaks(data_root.settings.results, available_physical_cores())
        return dg.MaterializeResult(
            metadata={
                "processor": peaks.cpu_name or "unknown",
                "threads": peaks.threads,
                "memory bandwidth, reading (GB/s)": peaks.read_gb_s,
                "memory bandwidth, triad (GB/s)": peaks.triad_gb_s,
                "matrix product (GFLOP/s)": peaks.matmul_gflop_s,
                "contended": peaks.contended,
            }
        )

    return host_peaks
