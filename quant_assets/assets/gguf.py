"""GGUF: a model's importance matrix, and its artifacts partitioned by level."""

from collections.abc import Iterator

import dagster as dg

from quant_assets.artifacts.job import library_versions
from quant_assets.artifacts.manifest import MANIFEST_NAME
from quant_assets.assets.conventions import (
    DEVICE_POOL,
    OWNERS,
    gguf_artifacts_key,
    importance_matrix_key,
    peak_memory_metadata,
    source_model_key,
)
from quant_assets.assets.partitions import gguf_levels
from quant_assets.models.config import ModelConfig
from quant_assets.models.source import SourceModel
from quant_assets.quantize.configured_intent import configured_calibration, configured_dataset
from quant_assets.quantize.gguf.artifact import GgufArtifact
from quant_assets.quantize.gguf.importance_matrix import ImportanceMatrixRecord
from quant_assets.quantize.gguf.job import DEFAULT_CHUNK_TOKENS, DEFAULT_CHUNKS
from quant_assets.resources.failures import clear_failures
from quant_assets.resources.llama_cpp import LlamaCpp
from quant_assets.resources.stores import DataRoot
from quant_assets.texts.calibration import calibration_text, default_calibration_text


def build_importance_matrix(model: ModelConfig) -> dg.AssetsDefinition:
    """The asset that measures the mean squared input of each matrix, column by column."""

    @dg.asset(
        key=importance_matrix_key(model),
        deps=[source_model_key(model)],
        group_name=model.slug,
        owners=OWNERS,
        kinds={"llamacpp", "gguf"},
        pool=DEVICE_POOL,
        description=(
            f"Mean squared inputs of the matrices of {model.name} over the calibration text, in "
            "llama.cpp's GGUF form. The smallest levels need it."
        ),
    )
    def importance_matrix(
        context: dg.AssetExecutionContext, data_root: DataRoot, llama_cpp: LlamaCpp
    ) -> dg.MaterializeResult[None]:
        with clear_failures():
            source = data_root.source(context, model)
            matrix = _importance_matrix(context, model, source, data_root, llama_cpp)
        if matrix.warning:
            context.log.warning(matrix.warning)
        return dg.MaterializeResult(
            metadata={
                "file": dg.MetadataValue.path(matrix.path),
                "calibration text": matrix.calibration,
                "warning": matrix.warning or "none",
                "matrices": matrix.n_entries,
                "tokens": matrix.n_tokens,
                "seconds": matrix.seconds,
                **peak_memory_metadata(
                    matrix.peak_rss_bytes, matrix.peak_own_bytes, matrix.peak_vram_bytes
                ),
            },
            data_version=dg.DataVersion(matrix.sha256),
        )

    return importance_matrix


def build_gguf_artifacts(model: ModelConfig) -> dg.AssetsDefinition:
    """The asset that quantizes a model to GGUF, one partition per level."""

    @dg.asset(
        key=gguf_artifacts_key(model),
        deps=[
            source_model_key(model),
            *([importance_matrix_key(model)] if model.importance_matrix else []),
        ],
        group_name=model.slug,
        owners=OWNERS,
        kinds={"llamacpp", "gguf"},
        pool=DEVICE_POOL,
        partitions_def=gguf_levels(model),
        backfill_policy=dg.BackfillPolicy.single_run(),
        # The bytes depend on these libraries: a new version makes the artifacts stale.
        code_version=", ".join(
            f"{name} {version}" for name, version in library_versions("gguf").items()
        ),
        description=(
            f"GGUF files of {model.name}, one per level, each with a manifest. A file is published "
            "only after it was loaded and generated text."
        ),
    )
    def gguf_artifacts(
        context: dg.AssetExecutionContext, data_root: DataRoot, llama_cpp: LlamaCpp
    ) -> Iterator[dg.MaterializeResult[None]]:
        store = data_root.artifacts
        with clear_failures():
            source = data_root.source(context, model)
            imatrix = (
                _importance_matrix(context, model, source, data_root, llama_cpp)
                if model.importance_matrix
                else None
            )
            for level in context.partition_keys:
                artifact = llama_cpp.quantize(context, model.name, source, level, store, imatrix)
                context.log.info(
                    f"{level}: {'reused' if artifact.reused else 'quantized'} {artifact.path}"
                )
                context.add_asset_metadata(_artifact_metadata(artifact), partition_key=level)
        yield dg.MaterializeResult()

    return gguf_artifacts


def _importance_matrix(
    context: dg.AssetExecutionContext,
    model: ModelConfig,
    source: SourceModel,
    data_root: DataRoot,
    llama_cpp: LlamaCpp,
) -> ImportanceMatrixRecord:
    settings = data_root.settings
    wanted, dataset = configured_calibration(model), configured_dataset(model, settings)
    calibration = (
        calibration_text(dataset, settings.cache)
        if dataset
        else default_calibration_text(settings.cache)
    )
    return llama_cpp.importance_matrix(
        context,
        model.name,
        source,
        settings.importance_matrices,
        calibration,
        max_chunks=wanted.num_samples or DEFAULT_CHUNKS,
        chunk_tokens=wanted.max_length or DEFAULT_CHUNK_TOKENS,
    )


def _artifact_metadata(artifact: GgufArtifact) -> dict[str, dg.MetadataValue]:
    manifest = artifact.manifest
    types = ", ".join(f"{count} {name}" for name, count in manifest.tensor_types.items())
    return {
        "file": dg.MetadataValue.path(artifact.path),
        "manifest": dg.MetadataValue.path(artifact.folder / MANIFEST_NAME),
        "job": dg.MetadataValue.text(manifest.job_id),
        "status": dg.MetadataValue.text(manifest.status),
        "size (MB)": dg.MetadataValue.float(manifest.size_bytes / 1e6),
        "bits per weight": dg.MetadataValue.float(manifest.bits_per_weight),
        "tensors by type": dg.MetadataValue.text(types),
        "source": dg.MetadataValue.text(manifest.source_provenance),
        "generated on validation": dg.MetadataValue.text(
            str(manifest.validation.get("generated_text"))
        ),
        "seconds": dg.MetadataValue.float(manifest.seconds),
        **peak_memory_metadata(
            manifest.peak_rss_bytes, manifest.peak_own_bytes, manifest.peak_vram_bytes
        ),
        "reused": dg.MetadataValue.bool(artifact.reused),
    }
