"""The jobs that schedules, sensors, the CLI and users launch, and the tags of their runs."""

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, TypeAlias

import dagster as dg

from quant_assets.assets.conventions import (
    HOST_GROUP,
    LISTINGS_GROUP,
    LIVE_GROUP,
    REPORT_GROUP,
    WAREHOUSE_GROUP,
    benchmark_results_key,
    gguf_artifacts_key,
    groupwise_artifacts_key,
    groupwise_formats,
    source_model_key,
    variant_quality_key,
)
from quant_assets.bench.variants import Variant
from quant_assets.formats.artifact_formats import GroupwiseFormat
from quant_assets.models.config import ModelConfig
from quant_assets.resources.executor import patient_in_process_executor

if TYPE_CHECKING:
    # What `dg.define_asset_job` returns has no public name; it is needed for annotations alone.
    from dagster._core.definitions.unresolved_asset_job_definition import (
        UnresolvedAssetJobDefinition,
    )

AssetJob: TypeAlias = "UnresolvedAssetJobDefinition"

REFRESH_LISTINGS = "refresh_listings"
REFRESH_MARTS = "refresh_marts"
MEASURE_HOST = "measure_host"
FETCH_LIVE_PRICES = "fetch_live_prices"
FULL_REBUILD = "full_rebuild"
MARTS = dg.AssetSelection.groups(WAREHOUSE_GROUP, "staging", "intermediate", "marts", REPORT_GROUP)
"""The raw tables, all dbt models (their groups are their folders) and the report."""

_RANGE_START = "dagster/asset_partition_range_start"
_RANGE_END = "dagster/asset_partition_range_end"


def source_job_name(model: ModelConfig) -> str:
    """Name of the job that fetches or dequantizes a model."""
    return f"{model.slug}_source"


def artifacts_job_name(model: ModelConfig) -> str:
    """Name of the job that quantizes a model to GGUF."""
    return f"{model.slug}_artifacts"


def groupwise_job_name(model: ModelConfig, method: GroupwiseFormat) -> str:
    """Name of the job that quantizes a model to GPTQ or AWQ."""
    return f"{model.slug}_{method}"


def quality_job_name(model: ModelConfig) -> str:
    """Name of the job that measures the quality of a model's variants."""
    return f"{model.slug}_quality"


def benchmarks_job_name(model: ModelConfig) -> str:
    """Name of the job that measures the speed and memory of a model's variants."""
    return f"{model.slug}_benchmarks"


def range_tags(keys: Sequence[str]) -> dict[str, str]:
    """Tags of a run over the partitions from the first key to the last; none without keys."""
    return {_RANGE_START: keys[0], _RANGE_END: keys[-1]} if keys else {}


def build_jobs(models: Iterable[ModelConfig], variants: Mapping[str, Variant]) -> list[AssetJob]:
    """All jobs but the full rebuild: listings, marts, host, live prices, and those per model."""
    jobs = [
        _job(
            REFRESH_LISTINGS,
            dg.AssetSelection.groups(LISTINGS_GROUP) | MARTS,
            "Read the listing files again and refresh everything downstream.",
        ),
        _job(
            REFRESH_MARTS,
            MARTS,
            "Load the raw tables from files, rebuild staging and marts, write the report.",
        ),
        _job(
            MEASURE_HOST,
            dg.AssetSelection.groups(HOST_GROUP),
            "Measure this machine's peak memory bandwidth and matrix throughput.",
        ),
        _job(
            FETCH_LIVE_PRICES,
            dg.AssetSelection.groups(LIVE_GROUP),
            "Fetch the offers of cloud providers; needs the extra `live` and a network.",
        ),
    ]
    for model in models:
        steps = {
            **{
                groupwise_job_name(model, method): (
                    groupwise_artifacts_key(model, method),
                    f"quantize to {method.upper()}; needs `make setup-groupwise`.",
                )
                for method in groupwise_formats(variants)
            },
            source_job_name(model): (source_model_key(model), "fetch or dequantize the model."),
            artifacts_job_name(model): (
                gguf_artifacts_key(model),
                "quantize to GGUF, level by level.",
            ),
            quality_job_name(model): (
                variant_quality_key(model),
                "perplexity and obedience, one partition per variant.",
            ),
            benchmarks_job_name(model): (
                benchmark_results_key(model),
                "speed and memory, one partition per variant and batch size.",
            ),
        }
        jobs += [
            _job(name, dg.AssetSelection.assets(key), f"{model.name}: {description}")
            for name, (key, description) in steps.items()
        ]
    return jobs


def _job(name: str, selection: dg.AssetSelection, description: str) -> AssetJob:
    """A job whose steps run in one process: they are light or start workers."""
    return dg.define_asset_job(
        name, selection=selection, description=description, executor_def=patient_in_process_executor
    )
