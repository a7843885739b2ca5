"""Benchmarks: one asset per model, partitioned by variant and batch size."""

from collections.abc import Iterator, Mapping

import dagster as dg

from quant_assets.assets.conventions import (
    DEVICE_POOL,
    OWNERS,
    artifact_keys,
    benchmark_results_key,
    peak_memory_metadata,
    variant_quality_key,
)
from quant_assets.assets.partitions import (
    BATCH_SIZE,
    VARIANT,
    PartitionEvent,
    benchmark_grid,
    materialized_partitions,
    observe_skipped,
)
from quant_assets.bench.artifact_finder import artifact_finder
from quant_assets.bench.matrix import first_failure
from quant_assets.bench.obedience.measurement import obedience_results
from quant_assets.bench.quality import QualityStore, newest_by_artifact, on_one_text
from quant_assets.bench.record import BenchmarkRecord
from quant_assets.bench.settings import BenchSettings
from quant_assets.bench.subject import Subject
from quant_assets.bench.variants import Variant
from quant_assets.errors import QuantAssetsError
from quant_assets.models.config import ModelConfig
from quant_assets.processes.protocol import ProgressEvent
from quant_assets.resources.failures import clear_failures
from quant_assets.resources.llama_cpp import LlamaCpp
from quant_assets.resources.stores import DataRoot
from quant_assets.resources.torch import Torch, backend_of
from quant_assets.resources.worker_logs import ProgressLog
from quant_assets.warehouse.loads.measurements import load_benchmarks


class BenchmarkConfig(dg.Config):
    """Launch-time overrides; a null keeps the value of the variants file."""

    warmups: int | None = None
    runs: int | None = None
    prompt_tokens: int | None = None
    generated_tokens: int | None = None
    threads: int | None = None

    def applied_to(self, settings: BenchSettings) -> BenchSettings:
        """`settings` with the fields that are set here."""
        given = {name: value for name, value in self.model_dump().items() if value is not None}
        return BenchSettings.model_validate({**settings.model_dump(), **given})


def build_benchmark_results(
    model: ModelConfig, variants: Mapping[str, Variant], defaults: BenchSettings
) -> dg.AssetsDefinition:
    """The asset that measures a model's variants at every batch size."""

    @dg.asset(
        key=benchmark_results_key(model),
        # A variant needs one level, but Dagster cannot map a dimension of a grid to keys of other
        # names. A level that is missing is noticed at run time, and its cells are skipped.
        deps=[
            *(
                dg.AssetDep(key, partition_mapping=dg.AllPartitionMapping())
                for key in artifact_keys(model, variants)
            ),
            dg.AssetDep(
                variant_quality_key(model),
                partition_mapping=dg.MultiToSingleDimensionPartitionMapping(VARIANT),
            ),
        ],
        group_name=model.slug,
        owners=OWNERS,
        kinds={"llamacpp", "json"},
        pool=DEVICE_POOL,
        partitions_def=benchmark_grid(variants, defaults),
        backfill_policy=dg.BackfillPolicy.single_run(),
        output_required=False,
        description=(
            f"Latency, throughput, load time and memory of {model.name}. Each cell runs in a "
            "process of its own, alone on the machine, and decodes the sequences of a batch "
            "together in one llama.cpp batch. Records are JSON files, from which DuckDB is loaded."
        ),
    )
    def benchmark_results(
        context: dg.AssetExecutionContext,
        config: BenchmarkConfig,
        data_root: DataRoot,
        llama_cpp: LlamaCpp,
        torch: Torch,
    ) -> Iterator[PartitionEvent]:
        measured: dict[str, Mapping[str, dg.MetadataValue]] = {}
        skipped: dict[str, str] = {}
        failures: dict[str, QuantAssetsError] = {}
        probed: set[type] = set()
        with clear_failures():
            settings = config.applied_to(defaults)
            find_artifact = artifact_finder(data_root.artifacts, model.name)
            results, root = data_root.results, data_root.settings
            current = {
                (name, artifact.artifact_id)
                for name, variant in variants.items()
                if (artifact := find_artifact(variant)) is not None
            }
            quality = on_one_text(
                (
                    result
                    for result in QualityStore(root.results, root.cache).all()
                    if result.model == model.name
                ),
                current,
            )
            obedience = newest_by_artifact(obedience_results(root.results))
            cells = ProgressLog(context.log.info)
            for number, key in enumerate(context.partition_keys):
                cells.show(
                    ProgressEvent(
                        step="cells", done=number, total=len(context.partition_keys), unit="cells"
                    )
                )
                assert isinstance(key, dg.MultiPartitionKey)
                variant = variants[key.keys_by_dimension[VARIANT]]
                artifact = find_artifact(variant)
                if artifact is None:
                    skipped[key] = (
                        f"{model.name} has no {variant.format} artifact of level {variant.level}; "
                        "materialize its partition first"
                    )
                    context.log.warning(f"skipped {key}: {skipped[key]}")
                    continue
                backend = backend_of(variant, llama_cpp, torch)
                subject = Subject(model.name, variant, artifact, settings)
                batch_size = int(key.keys_by_dimension[BATCH_SIZE])
                try:
                    if type(backend) not in probed:
                        context.log.info(backend.probe().text)
                        probed.add(type(backend))
                    cell = backend.measure(context, subject, batch_size)
                except QuantAssetsError as error:
                    failures[key] = error
                    context.log.error(f"{key} failed: {error}")
                    continue
                found = (variant.name, artifact.artifact_id)
                record = cell.record.with_quality(quality.get(found), obedience.get(found))
                record = results.append(record, cell.samples)
                measured[key] = _record_metadata(record)
            with data_root.warehouse.write() as connection:
                load_benchmarks(connection, results)
        observe_skipped(context, skipped)
        complete = not skipped and not failures
        yield from materialized_partitions(context, measured, complete=complete)
        if failures:
            with clear_failures():
                raise first_failure(failures)

    return benchmark_results


def _record_metadata(record: BenchmarkRecord) -> dict[str, dg.MetadataValue]:
    """Metadata that the partition's page shows and plots over time."""
    numbers = {
        "p50 (ms)": record.p50_ms,
        "p95 (ms)": record.p95_ms,
        "prefill (tokens/s)": record.prefill_tokens_per_s,
        "decode (tokens/s)": record.decode_tokens_per_s,
        "load time (ms)": record.load_time_ms,
        "command duration (ms)": record.command_duration_ms,
        "KV cache (MB)": record.kv_cache_bytes and record.kv_cache_bytes / 1e6,
        "perplexity": record.perplexity,
        "perplexity, standard error": record.perplexity_standard_error,
        "perplexity ratio to F16": record.perplexity_ratio,
        "perplexity ratio to F16, low": record.perplexity_ratio_low,
        "perplexity ratio to F16, high": record.perplexity_ratio_high,
        "obedience pass rate": record.obedience_pass_rate,
        "obedience pass rate, low": record.obedience_pass_rate_low,
        "obedience pass rate, high": record.obedience_pass_rate_high,
    }
    metadata = record.metadata
    return {
        **{
            name: dg.MetadataValue.float(value)
            for name, value in numbers.items()
            if value is not None
        },
        **peak_memory_metadata(record.peak_rss_bytes, None, record.peak_vram_bytes),
        "contended": dg.MetadataValue.bool(bool(record.contended)),
        "runs": dg.MetadataValue.int(metadata.runs),
        "prompt and generated tokens": dg.MetadataValue.text(
            f"{metadata.prompt_tokens} + {metadata.generated_tokens}"
        ),
        "artifact": dg.MetadataValue.text(metadata.artifact_id),
        "processor": dg.MetadataValue.text(str(metadata.gpu_name or metadata.cpu_name)),
        "host": dg.MetadataValue.text(metadata.host_id or "unknown"),
    }
