"""Partitions of a model's assets, and how a run over several of them reports each one."""

from collections.abc import Iterator, Mapping

import dagster as dg

from quant_assets.bench.settings import BenchSettings
from quant_assets.bench.variants import Variant
from quant_assets.models.config import ModelConfig

VARIANT = "variant"
BATCH_SIZE = "batch_size"

PartitionEvent = dg.MaterializeResult[None] | dg.AssetMaterialization
"""An event of a step over several partitions."""


def gguf_levels(model: ModelConfig) -> dg.StaticPartitionsDefinition:
    """The partitions of a model's GGUF artifacts."""
    return dg.StaticPartitionsDefinition(list(model.gguf_levels))


def variant_partitions(variants: Mapping[str, Variant]) -> dg.StaticPartitionsDefinition:
    """The partitions of the quality results; one dimension of the benchmark grid."""
    return dg.StaticPartitionsDefinition(list(variants))


def benchmark_grid(
    variants: Mapping[str, Variant], settings: BenchSettings
) -> dg.MultiPartitionsDefinition:
    """The partitions of the benchmarks: variant x batch size."""
    return dg.MultiPartitionsDefinition(
        {
            VARIANT: variant_partitions(variants),
            BATCH_SIZE: dg.StaticPartitionsDefinition([str(n) for n in settings.batch_sizes]),
        }
    )


def cell_key(variant: str, batch_size: int) -> dg.MultiPartitionKey:
    """The partition of one benchmark cell."""
    return dg.MultiPartitionKey({VARIANT: variant, BATCH_SIZE: str(batch_size)})


def observe_skipped(context: dg.AssetExecutionContext, skipped: Mapping[str, str]) -> None:
    """Record why partitions were skipped: one observation per partition key, with its reason."""
    for key, reason in skipped.items():
        context.log_event(
            dg.AssetObservation(context.asset_key, partition=key, metadata={"skipped": reason})
        )


def materialized_partitions(
    context: dg.AssetExecutionContext,
    measured: Mapping[str, Mapping[str, dg.MetadataValue]],
    *,
    complete: bool,
) -> Iterator[PartitionEvent]:
    """Materialize the partitions of a run, each with its own metadata.

    An output stands for all partitions of its run. A run that skipped some, or in which some failed
    (not `complete`), has no output but a materialization for each partition that it measured. They
    are yielded because events that are only logged are lost when the step then fails.
    """
    if complete:
        for key, metadata in measured.items():
            context.add_asset_metadata(metadata, partition_key=key)
        yield dg.MaterializeResult()
        return
    for key, metadata in measured.items():
        yield dg.AssetMaterialization(context.asset_key, partition=key, metadata=metadata)
