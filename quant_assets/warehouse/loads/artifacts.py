"""Tables from the artifact store: manifests, shapes of models, and the needs of serving them."""

import logging
from collections.abc import Callable, Mapping
from pathlib import Path

import duckdb

from quant_assets.artifacts.manifest import ArtifactManifest
from quant_assets.artifacts.store import ArtifactStore
from quant_assets.bench.artifact_finder import artifact_finder
from quant_assets.bench.results import ResultStore
from quant_assets.bench.variants import Variant
from quant_assets.errors import InputError
from quant_assets.models.inspection import ModelShape, inspect_model
from quant_assets.record_files import recency
from quant_assets.speed.needs import (
    ServingGrid,
    ServingNeeds,
    StoredWeights,
    grid_needs,
    run_needs,
)
from quant_assets.warehouse.loads.tables import replace_rows

ReadShape = Callable[[ArtifactManifest], ModelShape | None]

_log = logging.getLogger(__name__)

_SHAPE_COLUMNS = (
    "architecture", "n_layers", "n_heads", "n_kv_heads", "head_dim_k", "head_dim_v", "hidden_size",
    "intermediate_size", "vocab_size", "context_length", "sliding_window", "n_sliding_layers",
    "n_experts", "n_experts_used", "n_parameters", "n_linear_parameters",
)  # fmt: skip


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
    return replace_rows(connection, "artifacts", rows)


def load_models(connection: duckdb.DuckDBPyConnection, store: ArtifactStore) -> int:
    """Load `raw.models`, the shape of every model that has an artifact; return its row count."""
    rows = [
        {"model": model, **{name: getattr(shape, name) for name in _SHAPE_COLUMNS}}
        for model, shape in _shapes(store, shape_reader(store)).items()
    ]
    return replace_rows(connection, "models", rows)


def load_serving_needs(
    connection: duckdb.DuckDBPyConnection,
    store: ArtifactStore,
    variants: Mapping[str, Variant],
    results: ResultStore,
    grid: ServingGrid,
) -> int:
    """Load `raw.serving_needs` for every model and variant with an artifact; return its row count.

    The rows are the points of the grid and the lengths of all measured runs.
    """
    lengths: dict[tuple[str, str], set[tuple[int, int, int]]] = {}
    for record in results.records():
        run = record.metadata
        cell = (run.prompt_tokens, run.generated_tokens, run.batch_size)
        lengths.setdefault((run.model, run.variant), set()).add(cell)
    needs: list[ServingNeeds] = []
    shape_of = shape_reader(store)
    for model in _shapes(store, shape_of):
        find_artifact = artifact_finder(store, model)
        for variant in variants.values():
            located = find_artifact(variant)
            manifest = store.find(located.artifact_id) if located else None
            shape = shape_of(manifest) if manifest else None
            if manifest is None or shape is None:
                continue
            tensor_bytes = round(manifest.bits_per_weight * manifest.n_parameters / 8)
            weights = StoredWeights(manifest.job_id, tensor_bytes)
            runs = sorted(lengths.get((model, variant.name), ()))
            try:
                needs += grid_needs(model, shape, variant, weights, grid)
                needs += run_needs(model, shape, variant, weights, runs)
            except InputError:
                continue  # llama.cpp, too, refuses this KV cache type for the model's heads
    return replace_rows(connection, "serving_needs", [need.model_dump() for need in needs])


def loaded_grid_needs(connection: duckdb.DuckDBPyConnection) -> list[ServingNeeds]:
    """The points of the serving grid in `raw.serving_needs`.

    Rows of an earlier version, which lack what predictions need, are left out.
    """
    rows = connection.execute(
        "select needs from raw.serving_needs as needs "
        "where source = 'grid' and weight_type is not null"
    ).fetchall()
    return [ServingNeeds.model_validate(fields) for (fields,) in rows]


def _shapes(store: ArtifactStore, shape_of: ReadShape) -> dict[str, ModelShape]:
    """The shape of every model with a valid artifact, from the newest readable one."""
    shapes: dict[str, ModelShape] = {}
    for manifest in sorted(store.all(), key=lambda item: recency(item.created_at), reverse=True):
        model = manifest.job.model_name
        if manifest.status == "valid" and model not in shapes:
            shape = shape_of(manifest)
            if shape is not None:
                shapes[model] = shape
    return shapes


def shape_reader(store: ArtifactStore) -> ReadShape:
    """A function that reads the headers of an artifact once.

    It returns None, with a warning, where they are damaged.
    """
    known: dict[str, ModelShape | None] = {}

    def shape_of(manifest: ArtifactManifest) -> ModelShape | None:
        if manifest.job_id not in known:
            known[manifest.job_id] = None
            try:
                known[manifest.job_id] = inspect_model(_model_path(store, manifest))
            except InputError as error:
                _log.warning("The artifact %s is ignored. %s", manifest.job_id, error)
        return known[manifest.job_id]

    return shape_of


def _model_path(store: ArtifactStore, manifest: ArtifactManifest) -> Path:
    """The artifact as `inspect_model` takes it: a GGUF file, or the folder of a checkpoint."""
    folder = store.folder(manifest.job_id)
    is_file = manifest.job.target_format == "gguf"
    return folder / manifest.files[0].name if is_file else folder
