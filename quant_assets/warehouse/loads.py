"""Load the raw tables from what the data root holds; a load replaces its table's rows, whole."""

import datetime
import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import duckdb
import pandas as pd

from quant_assets.artifacts.manifest import ArtifactManifest
from quant_assets.artifacts.store import ArtifactStore
from quant_assets.bench.artifact_finder import artifact_finder
from quant_assets.bench.obedience.measurement import obedience_results
from quant_assets.bench.quality import QualityStore
from quant_assets.bench.results import ResultStore
from quant_assets.bench.variants import Variant
from quant_assets.duckdb_files import READ_OPTIONS, exact_pattern
from quant_assets.errors import InputError
from quant_assets.gpus.registry import GpuRegistry, load_registry
from quant_assets.listings.store import LISTING_TABLES, ListingTable
from quant_assets.models.inspection import ModelShape, inspect_model
from quant_assets.record_files import recency
from quant_assets.speed.host_peaks import recorded_peaks
from quant_assets.speed.needs import (
    ServingGrid,
    ServingNeeds,
    StoredWeights,
    grid_needs,
    run_needs,
)
from quant_assets.warehouse.price_history import intact_snapshots

_log = logging.getLogger(__name__)

_GPU_COLUMNS = (
    "canonical_name", "vendor", "architecture", "vram_gb", "memory_bandwidth_gb_s", "tdp_w",
    "fp16_dense_tflops", "int8_dense_tops", "compute_capability", "release_year",
)  # fmt: skip
_SHAPE_COLUMNS = (
    "architecture", "n_layers", "n_heads", "n_kv_heads", "head_dim_k", "head_dim_v", "hidden_size",
    "intermediate_size", "vocab_size", "context_length", "sliding_window", "n_sliding_layers",
    "n_experts", "n_experts_used", "n_parameters", "n_linear_parameters",
)  # fmt: skip
_HISTORY = f"""
    select
        recorded_at::timestamptz as recorded_at, offer_id::varchar as offer_id,
        canonical_name::varchar as canonical_name, gpu_count::bigint as gpu_count,
        price_kind::varchar as price_kind, seller::varchar as seller, title::varchar as title,
        price_usd::double as price_usd, price_per_gpu_usd::double as price_per_gpu_usd
    from read_parquet(?, union_by_name => true, {READ_OPTIONS})
"""  # noqa: S608
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


def load_models(connection: duckdb.DuckDBPyConnection, store: ArtifactStore) -> int:
    """Load `raw.models`, the shape of every model that has an artifact; return its row count."""
    rows = [
        {"model": model, **{name: getattr(shape, name) for name in _SHAPE_COLUMNS}}
        for model, shape in _shapes(store).items()
    ]
    return _replace_rows(connection, "models", rows)


def load_serving_needs(
    connection: duckdb.DuckDBPyConnection,
    store: ArtifactStore,
    variants: Mapping[str, Variant],
    results: ResultStore,
    grid: ServingGrid,
) -> int:
    """Load `raw.serving_needs`: every variant of every model that has its artifact.

    Its rows are the points of the grid and the lengths of all measured runs. Returns their count.
    """
    lengths: dict[tuple[str, str], set[tuple[int, int, int]]] = {}
    for record in results.records():
        run = record.metadata
        cell = (run.prompt_tokens, run.generated_tokens, run.batch_size)
        lengths.setdefault((run.model, run.variant), set()).add(cell)
    needs: list[ServingNeeds] = []
    for model, shape in _shapes(store).items():
        find_artifact = artifact_finder(store, model)
        for variant in variants.values():
            located = find_artifact(variant)
            manifest = store.find(located.artifact_id) if located else None
            if manifest is None:
                continue
            tensor_bytes = round(manifest.bits_per_weight * manifest.n_parameters / 8)
            weights = StoredWeights(manifest.job_id, tensor_bytes)
            runs = sorted(lengths.get((model, variant.name), ()))
            try:
                needs += grid_needs(model, shape, variant, weights, grid)
                needs += run_needs(model, shape, variant, weights, runs)
            except InputError:
                continue  # llama.cpp refuses this type of KV cache for the model's heads, too
    return _replace_rows(connection, "serving_needs", [need.model_dump() for need in needs])


def load_benchmarks(
    connection: duckdb.DuckDBPyConnection,
    results: ResultStore,
    registry: GpuRegistry | None = None,
) -> int:
    """Load `raw.benchmark_runs` from the result files; return its row count.

    `gpu` is the registry's card that the driver's name means, null when it could mean several.
    """
    known = registry or load_registry()
    rows = []
    for record in results.records():
        gpu = known.reported(record.metadata.gpu_name) if record.metadata.gpu_name else None
        rows.append({**record.flat(), "gpu": gpu.canonical_name if gpu else None})
    return _replace_rows(connection, "benchmark_runs", rows)


def load_variant_quality(
    connection: duckdb.DuckDBPyConnection, quality: QualityStore, results: Path
) -> int:
    """Load `raw.variant_quality` from the quality and obedience files; return its row count."""
    rows: list[dict[str, Any]] = [
        {
            "kind": "perplexity",
            "measured_at": result.timestamp,
            "context_tokens": result.measurement.context,
            **result.model_dump(
                include={"model", "variant", "artifact_id", "baseline_artifact_id", "text"}
            ),
            **result.measurement.model_dump(
                include={
                    "windows", "scored_tokens", "perplexity", "perplexity_standard_error",
                    "perplexity_ratio", "kl_divergence", "kl_divergence_p99", "top1_agreement",
                }
            ),
        }
        for result in quality.all()
    ]  # fmt: skip
    rows += [
        {
            "kind": "obedience",
            "measured_at": result.timestamp,
            "obedience_prompts": len(result.transcripts),
            "obedience_pass_rate": result.pass_rate,
            **result.model_dump(include={"model", "variant", "artifact_id"}),
        }
        for result in obedience_results(results)
    ]
    return _replace_rows(connection, "variant_quality", rows)


def load_hosts(connection: duckdb.DuckDBPyConnection, results: Path) -> int:
    """Load `raw.hosts` from the measured peaks; return its row count."""
    rows = [peaks.model_dump(exclude={"library_versions"}) for peaks in recorded_peaks(results)]
    return _replace_rows(connection, "hosts", rows)


def load_listing_history(connection: duckdb.DuckDBPyConnection, folder: Path) -> int:
    """Load `raw.listing_history` from the snapshots in `folder`; return its row count.

    A damaged snapshot is left out: the others are a history, too.
    """
    connection.execute("delete from raw.listing_history").fetchall()
    now = datetime.datetime.now(datetime.UTC)
    snapshots = [exact_pattern(path) for path in intact_snapshots(folder, now)]
    if snapshots:
        connection.execute(
            f"insert into raw.listing_history by name {_HISTORY}",
            [snapshots],
        ).fetchall()
    return _count(connection, "listing_history")


def load_listing_table(
    connection: duckdb.DuckDBPyConnection, table: ListingTable, parquet: Path
) -> int:
    """Replace one listing table by the content of a Parquet snapshot; return its row count.

    Raises `InputError` for a damaged snapshot.
    """
    assert table in LISTING_TABLES  # a table name cannot be bound as a parameter
    try:
        connection.execute(
            f"create or replace table raw.{table} as "  # noqa: S608
            f"select * from read_parquet(?, {READ_OPTIONS})",
            [exact_pattern(parquet)],
        ).fetchall()
    except duckdb.Error as error:
        raise InputError(
            f"The listings {parquet} cannot be read.",
            str(error),
            "Refresh the listings (`make demo`, or the job `refresh_listings`): it is written anew.",
        ) from error
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


def _shapes(store: ArtifactStore) -> dict[str, ModelShape]:
    """The shape of every model with a valid artifact, read from the newest one that can be read."""
    shapes: dict[str, ModelShape] = {}
    for manifest in sorted(store.all(), key=lambda item: recency(item.created_at), reverse=True):
        model = manifest.job.model_name
        if manifest.status == "valid" and model not in shapes:
            try:
                shapes[model] = inspect_model(_model_path(store, manifest))
            except InputError as error:
                _log.warning("The artifact %s is ignored. %s", manifest.job_id, error)
    return shapes


def _model_path(store: ArtifactStore, manifest: ArtifactManifest) -> Path:
    """What is inspected: a GGUF file, or the folder of a checkpoint."""
    folder = store.folder(manifest.job_id)
    is_file = manifest.job.target_format == "gguf"
    return folder / manifest.files[0].name if is_file else folder


def _replace_rows(
    connection: duckdb.DuckDBPyConnection, table: str, rows: Iterable[Mapping[str, Any]]
) -> int:
    frame = pd.DataFrame(list(rows))
    connection.execute(f"delete from raw.{table}").fetchall()  # noqa: S608
    if not frame.empty:
        connection.register("incoming_rows", frame)
        try:
            insert = f"insert into raw.{table} by name select * from incoming_rows"  # noqa: S608
            connection.execute(insert).fetchall()
        except (duckdb.DataError, duckdb.IntegrityError) as error:
            raise InputError(
                f"The table raw.{table} cannot be loaded.",
                f"A record holds a value that the table has no room for: {error}",
                "Correct that record, or move it away.",
            ) from error
        finally:
            connection.unregister("incoming_rows")
    return _count(connection, table)


def _count(connection: duckdb.DuckDBPyConnection, table: str) -> int:
    return _scalar(connection, f"select count(*) from raw.{table}")  # noqa: S608


def _scalar(connection: duckdb.DuckDBPyConnection, query: str) -> int:
    # A result must be read to its end before the connection runs the next statement.
    return int(connection.execute(query).fetchall()[0][0])
