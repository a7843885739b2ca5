"""The raw tables of the warehouse that join all models: artifacts, benchmark runs, references."""

from collections.abc import Callable, Iterable, Mapping

import dagster as dg
import duckdb

from quant_assets.assets.artifacts import OWNERS, gguf_artifacts_key
from quant_assets.assets.benchmarks import benchmark_results_key
from quant_assets.assets.previews import table_metadata
from quant_assets.bench.variants import Variant
from quant_assets.listings.registry import load_registry
from quant_assets.models.config import ModelConfig
from quant_assets.resources.failures import clear_failures
from quant_assets.resources.stores import DataRoot
from quant_assets.warehouse.loads import (
    load_artifacts,
    load_benchmarks,
    load_gpus,
    load_variants_table,
)

WAREHOUSE_POOL = "warehouse"
GROUP = "warehouse"

FOLLOWS_ITS_INPUTS = dg.AutomationCondition.eager().without(
    # Not every partition of a grid is ever filled; a table takes what there is.
    ~dg.AutomationCondition.any_deps_missing()
)

Load = Callable[[duckdb.DuckDBPyConnection, DataRoot], int]


def build_table(
    name: str, description: str, load: Load, deps: Iterable[dg.AssetKey] = ()
) -> dg.AssetsDefinition:
    """An asset that is the table `raw.<name>`, loaded whole by `load`."""

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
    def table(data_root: DataRoot) -> dg.MaterializeResult[None]:
        warehouse = data_root.warehouse
        with clear_failures(), warehouse.write() as connection:
            load(connection, data_root)
            metadata = table_metadata(connection, f"raw.{name}")
        return dg.MaterializeResult(
            metadata={"database": dg.MetadataValue.path(warehouse.path), **metadata}
        )

    return table


def build_tables(
    models: Iterable[ModelConfig], variants: Mapping[str, Variant]
) -> list[dg.AssetsDefinition]:
    """The reference tables, and the tables that join what all models produced."""
    models = list(models)
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
            [gguf_artifacts_key(model) for model in models],
        ),
        build_table(
            "benchmark_runs",
            "All benchmark records of all models, from the result files.",
            lambda connection, root: load_benchmarks(connection, root.results),
            [benchmark_results_key(model) for model in models],
        ),
    ]
