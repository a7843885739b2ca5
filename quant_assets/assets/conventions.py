"""Conventions of the asset graph: owners, groups, pools, the automation policy and asset keys.

A model's assets form a group of their own, named by the model's slug.
"""

from collections.abc import Mapping
from typing import get_args

import dagster as dg

from quant_assets.bench.variants import Variant
from quant_assets.formats.artifact_formats import GroupwiseFormat
from quant_assets.models.config import ModelConfig

OWNERS = ["team:inference"]

LISTINGS_GROUP = "listings"
LIVE_GROUP = "live"
HOST_GROUP = "host"
WAREHOUSE_GROUP = "warehouse"
REPORT_GROUP = "report"

DEVICE_POOL = "device"
"""The pool of steps that keep this machine's processor or GPU busy: one step at a time."""
WAREHOUSE_POOL = "warehouse"
"""The pool of steps that write to the warehouse or the listings' files: one step at a time."""

FOLLOWS_ITS_INPUTS = dg.AutomationCondition.eager().without(
    # Not every partition of a grid is ever filled; a table takes what there is.
    ~dg.AutomationCondition.any_deps_missing()
)


def peak_memory_metadata(
    peak_rss_bytes: int | None, peak_own_bytes: int | None, peak_vram_bytes: int | None
) -> dict[str, dg.MetadataValue]:
    """Peak memory in MB (10^6 bytes), as `MemoryUsage` defines it; what was not measured is absent."""
    peaks = {
        "peak memory (MB)": peak_rss_bytes,
        "peak memory without mapped files (MB)": peak_own_bytes,
        "peak GPU memory (MB)": peak_vram_bytes,
    }
    return {
        name: dg.MetadataValue.float(size / 1e6) for name, size in peaks.items() if size is not None
    }


def source_model_key(model: ModelConfig) -> dg.AssetKey:
    """Key of a model's floating-point source."""
    return dg.AssetKey([model.slug, "source_model"])


def importance_matrix_key(model: ModelConfig) -> dg.AssetKey:
    """Key of a model's importance matrix."""
    return dg.AssetKey([model.slug, "importance_matrix"])


def gguf_artifacts_key(model: ModelConfig) -> dg.AssetKey:
    """Key of a model's GGUF files, partitioned by level."""
    return dg.AssetKey([model.slug, "gguf_artifacts"])


def groupwise_artifacts_key(model: ModelConfig, method: GroupwiseFormat) -> dg.AssetKey:
    """Key of a model's GPTQ or AWQ folders, partitioned by variant."""
    return dg.AssetKey([model.slug, f"{method}_artifacts"])


def artifact_keys(model: ModelConfig, variants: Mapping[str, Variant]) -> list[dg.AssetKey]:
    """Keys of all assets that hold artifacts which the variants name."""
    groupwise = [groupwise_artifacts_key(model, method) for method in groupwise_formats(variants)]
    return [gguf_artifacts_key(model), *groupwise]


def variant_quality_key(model: ModelConfig) -> dg.AssetKey:
    """Key of the quality results of a model's variants."""
    return dg.AssetKey([model.slug, "variant_quality_results"])


def benchmark_results_key(model: ModelConfig) -> dg.AssetKey:
    """Key of a model's benchmark records."""
    return dg.AssetKey([model.slug, "benchmark_results"])


def groupwise_variants(
    variants: Mapping[str, Variant], method: GroupwiseFormat
) -> dict[str, Variant]:
    """The variants of one format."""
    return {name: variant for name, variant in variants.items() if variant.format == method}


def groupwise_formats(variants: Mapping[str, Variant]) -> list[GroupwiseFormat]:
    """Those of GPTQ and AWQ that have variants."""
    return [method for method in get_args(GroupwiseFormat) if groupwise_variants(variants, method)]
