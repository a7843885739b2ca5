"""Source models and their GGUF artifacts: one asset group a model."""

from collections.abc import Iterator, Mapping
from typing import get_args

import dagster as dg

from quant_assets.artifacts.job import library_versions
from quant_assets.bench.variants import Variant
from quant_assets.formats.artifact_formats import GroupwiseFormat
from quant_assets.models.config import ModelConfig
from quant_assets.models.inspection import inspect_model
from quant_assets.models.source import SourceModel
from quant_assets.quantize.conversion.plain_weights import source_manifest
from quant_assets.quantize.gguf.artifact import GgufArtifact
from quant_assets.quantize.gguf.importance_matrix import ImportanceMatrixRecord
from quant_assets.resources.backend import DEVICE_POOL
from quant_assets.resources.failures import clear_failures
from quant_assets.resources.llama_cpp import LlamaCpp
from quant_assets.resources.stores import DataRoot
from quant_assets.texts.calibration import default_calibration_text

OWNERS = ["team:inference"]


def source_model_key(model: ModelConfig) -> dg.AssetKey:
    """Key of the asset that is a model's floating-point source."""
    return dg.AssetKey([model.slug, "source_model"])


def importance_matrix_key(model: ModelConfig) -> dg.AssetKey:
    """Key of the asset that is a model's importance matrix."""
    return dg.AssetKey([model.slug, "importance_matrix"])


def gguf_artifacts_key(model: ModelConfig) -> dg.AssetKey:
    """Key of the asset that is a model's GGUF files, partitioned by level."""
    return dg.AssetKey([model.slug, "gguf_artifacts"])


def groupwise_artifacts_key(model: ModelConfig, method: GroupwiseFormat) -> dg.AssetKey:
    """Key of the asset that is a model's GPTQ or AWQ folders."""
    return dg.AssetKey([model.slug, f"{method}_artifacts"])


def groupwise_variants(
    variants: Mapping[str, Variant], method: GroupwiseFormat
) -> dict[str, Variant]:
    """The variants of one format."""
    return {name: variant for name, variant in variants.items() if variant.format == method}


def groupwise_formats(variants: Mapping[str, Variant]) -> list[GroupwiseFormat]:
    """GPTQ and AWQ, as far as there are variants of them."""
    return [method for method in get_args(GroupwiseFormat) if groupwise_variants(variants, method)]


def artifact_keys(model: ModelConfig, variants: Mapping[str, Variant]) -> list[dg.AssetKey]:
    """Keys of all assets that hold artifacts which the variants name."""
    groupwise = [groupwise_artifacts_key(model, method) for method in groupwise_formats(variants)]
    return [gguf_artifacts_key(model), *groupwise]


def gguf_levels(model: ModelConfig) -> dg.StaticPartitionsDefinition:
    """The partitions of a model's GGUF artifacts."""
    return dg.StaticPartitionsDefinition(list(model.gguf_levels))


def build_source_model(model: ModelConfig) -> dg.AssetsDefinition:
    """The asset that fetches a model, or dequantizes it, into a local folder or file."""

    @dg.asset(
        key=source_model_key(model),
        group_name=model.slug,
        owners=OWNERS,
        kinds={"huggingface"},
        pool=DEVICE_POOL,
        description=f"The floating-point weights that the artifacts of {model.name} are made of.",
        metadata={"source": model.source},
    )
    def source_model(
        context: dg.AssetExecutionContext, data_root: DataRoot
    ) -> dg.MaterializeResult[None]:
        with clear_failures():
            source = data_root.source(context, model)
            shape = inspect_model(source.path)
        manifest = source_manifest(source.path) if source.kind == "hf" else None
        return dg.MaterializeResult(
            metadata={
                "path": dg.MetadataValue.path(source.path),
                "kind": source.kind,
                "provenance": source.provenance,
                "weights come from": manifest.weights_file_type if manifest else "the original",
                "identity": source.identity,
                "architecture": shape.architecture,
                "parameters": shape.n_parameters,
                "layers": shape.n_layers,
                "context length": shape.context_length or "unknown",
            },
            data_version=dg.DataVersion(source.identity),
        )

    return source_model


def build_importance_matrix(model: ModelConfig) -> dg.AssetsDefinition:
    """The asset that measures how much the output depends on every input of every matrix."""

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
            made = _importance_matrix(context, model, source, data_root, llama_cpp)
        if made.warning:
            context.log.warning(made.warning)
        return dg.MaterializeResult(
            metadata={
                "file": dg.MetadataValue.path(made.path),
                "calibration text": made.calibration,
                "warning": made.warning or "none",
                "matrices": made.n_entries,
                "tokens": made.n_tokens,
                "seconds": made.seconds,
                "peak memory (MB)": made.peak_rss_bytes / 1e6,
            },
            data_version=dg.DataVersion(made.sha256),
        )

    return importance_matrix


def build_gguf_artifacts(model: ModelConfig) -> dg.AssetsDefinition:
    """The asset that quantizes a model to GGUF, one partition a level."""

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
        # A new version of a library that decides the bytes makes the artifacts stale.
        code_version=", ".join(
            f"{name} {version}" for name, version in library_versions("gguf").items()
        ),
        description=(
            f"GGUF files of {model.name}, a level each, with a manifest; each was loaded and "
            "generated before it got its name."
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
                made = llama_cpp.quantize(context, model.name, source, level, store, imatrix)
                context.log.info(f"{level}: {'found' if made.reused else 'made'} {made.path}")
                context.add_asset_metadata(_artifact_metadata(made), partition_key=level)
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
    calibration = default_calibration_text(settings.cache)
    return llama_cpp.importance_matrix(
        context, model.name, source, settings.importance_matrices, calibration
    )


def _artifact_metadata(made: GgufArtifact) -> dict[str, dg.MetadataValue]:
    manifest = made.manifest
    types = ", ".join(f"{count} {name}" for name, count in manifest.tensor_types.items())
    return {
        "file": dg.MetadataValue.path(made.path),
        "manifest": dg.MetadataValue.path(made.folder / "manifest.json"),
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
        "peak memory (MB)": dg.MetadataValue.float((manifest.peak_rss_bytes or 0) / 1e6),
        "reused": dg.MetadataValue.bool(made.reused),
    }
