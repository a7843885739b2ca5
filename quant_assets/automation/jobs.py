"""The jobs that schedules, sensors, the CLI and people launch."""

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, TypeAlias

import dagster as dg

from quant_assets.assets.artifacts import (
    gguf_artifacts_key,
    groupwise_artifacts_key,
    groupwise_formats,
    source_model_key,
)
from quant_assets.assets.benchmarks import benchmark_results_key
from quant_assets.assets.quality import variant_quality_key
from quant_assets.bench.variants import Variant
from quant_assets.formats.artifact_formats import GroupwiseFormat
from quant_assets.models.config import ModelConfig
from quant_assets.resources.executor import patient_in_process_executor

if TYPE_CHECKING:
    from dagster._core.definitions.unresolved_asset_job_definition import (
        UnresolvedAssetJobDefinition,
    )

AssetJob: TypeAlias = "UnresolvedAssetJobDefinition"

REFRESH_LISTINGS = "refresh_listings"
REFRESH_MARTS = "refresh_marts"
MEASURE_HOST = "measure_host"
FETCH_LIVE_PRICES = "fetch_live_prices"
FULL_REBUILD = "full_rebuild"
MARTS = dg.AssetSelection.groups("warehouse", "staging", "intermediate", "marts", "report")


def source_job_name(model: ModelConfig) -> str:
    """Name of the job that fetches a model."""
    return f"{model.slug}_source"


def artifacts_job_name(model: ModelConfig) -> str:
    """Name of the job that makes a model's GGUF artifacts."""
    return f"{model.slug}_artifacts"


def groupwise_job_name(model: ModelConfig, method: GroupwiseFormat) -> str:
    """Name of the job that makes a model's GPTQ or AWQ artifacts."""
    return f"{model.slug}_{method}"


def quality_job_name(model: ModelConfig) -> str:
    """Name of the job that measures the quality of a model's variants."""
    return f"{model.slug}_quality"


def benchmarks_job_name(model: ModelConfig) -> str:
    """Name of the job that measures a model's variants."""
    return f"{model.slug}_benchmarks"


def build_jobs(models: Iterable[ModelConfig], variants: Mapping[str, Variant]) -> list[AssetJob]:
    """All jobs: listings with everything after them, marts alone, and those of every model."""
    jobs = [
        _job(
            REFRESH_LISTINGS,
            dg.AssetSelection.groups("listings") | MARTS,
            "Read the listing files again and refresh everything that follows.",
        ),
        _job(
            REFRESH_MARTS,
            MARTS,
            "Load the raw tables from the files, rebuild staging and marts, write the report.",
        ),
        _job(
            MEASURE_HOST,
            dg.AssetSelection.groups("host"),
            "Measure what this machine's memory and processor can do at most.",
        ),
        _job(
            FETCH_LIVE_PRICES,
            dg.AssetSelection.groups("live"),
            "Fetch the offers of cloud providers; needs the extra `live` and a network.",
        ),
    ]
    for model in models:
        steps = {
            **{
                groupwise_job_name(model, method): (
                    groupwise_artifacts_key(model, method),
                    f"Quantize it to {method.upper()}; needs `make setup-groupwise`.",
                )
                for method in groupwise_formats(variants)
            },
            source_job_name(model): (source_model_key(model), "Fetch or dequantize the model."),
            artifacts_job_name(model): (gguf_artifacts_key(model), "Quantize it, level by level."),
            quality_job_name(model): (
                variant_quality_key(model),
                "Perplexity and obedience, a partition a variant.",
            ),
            benchmarks_job_name(model): (
                benchmark_results_key(model),
                "Speed and memory, a partition a variant and batch size.",
            ),
        }
        jobs += [
            _job(name, dg.AssetSelection.assets(key), f"{model.name}: {description}")
            for name, (key, description) in steps.items()
        ]
    return jobs


def _job(name: str, selection: dg.AssetSelection, description: str) -> AssetJob:
    """A job whose steps run in one process: they are light, or start workers of their own."""
    return dg.define_asset_job(
        name, selection=selection, description=description, executor_def=patient_in_process_executor
    )
