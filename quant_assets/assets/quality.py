"""Quality: one asset per model, partitioned by variant."""

from collections.abc import Iterator, Mapping

import dagster as dg
from pydantic import NonNegativeInt, PositiveInt

from quant_assets.assets.conventions import (
    DEVICE_POOL,
    OWNERS,
    artifact_keys,
    variant_quality_key,
)
from quant_assets.assets.partitions import (
    PartitionEvent,
    materialized_partitions,
    observe_skipped,
    variant_partitions,
)
from quant_assets.bench.artifact_finder import artifact_finder
from quant_assets.bench.kv_cache import DEFAULT_KV_CACHE_WINDOWS, KvCacheResult
from quant_assets.bench.matrix import first_failure
from quant_assets.bench.obedience.measurement import ObedienceResult
from quant_assets.bench.obedience.prompts import load_prompts, spread_prompts
from quant_assets.bench.quality import DEFAULT_WINDOWS, QualityResult, QualityStore
from quant_assets.bench.settings import BenchSettings
from quant_assets.bench.subject import Subject
from quant_assets.bench.variants import BASELINE_VARIANT, Variant
from quant_assets.errors import QuantAssetsError
from quant_assets.models.config import ModelConfig
from quant_assets.resources.failures import clear_failures
from quant_assets.resources.llama_cpp import LlamaCpp
from quant_assets.resources.stores import DataRoot
from quant_assets.resources.torch import Torch, backend_of
from quant_assets.texts.evaluation import evaluation_text


class QualityConfig(dg.Config):
    """How many windows of 512 tokens are scored, and whether obedience is measured as well.

    `obedience_prompts`: the number of prompts, spread over their categories; null means all.
    `kv_cache_windows`: windows, each as long as the model's longest `kv_cache_contexts`, on which
    quantized KV caches are compared with an F16 cache; 0: not at all.
    """

    windows: int = DEFAULT_WINDOWS
    obedience: bool = True
    obedience_prompts: PositiveInt | None = None
    kv_cache_windows: NonNegativeInt = DEFAULT_KV_CACHE_WINDOWS


def build_variant_quality(
    model: ModelConfig, variants: Mapping[str, Variant], settings: BenchSettings
) -> dg.AssetsDefinition:
    """The asset that measures how much of a model's quality each variant keeps."""

    @dg.asset(
        key=variant_quality_key(model),
        deps=[
            dg.AssetDep(key, partition_mapping=dg.AllPartitionMapping())
            for key in artifact_keys(model, variants)
        ],
        group_name=model.slug,
        owners=OWNERS,
        kinds={"llamacpp", "json"},
        pool=DEVICE_POOL,
        partitions_def=variant_partitions(variants),
        backfill_policy=dg.BackfillPolicy.single_run(),
        output_required=False,
        description=(
            f"Perplexity of the variants of {model.name}, their divergence from the F16 baseline "
            "on the same tokens, and the share of instructions that they obey."
        ),
    )
    def variant_quality_results(
        context: dg.AssetExecutionContext,
        config: QualityConfig,
        data_root: DataRoot,
        llama_cpp: LlamaCpp,
        torch: Torch,
    ) -> Iterator[PartitionEvent]:
        root = data_root.settings
        find = artifact_finder(data_root.artifacts, model.name)
        baseline = find(variants[BASELINE_VARIANT]) if BASELINE_VARIANT in variants else None
        measured: dict[str, dict[str, dg.MetadataValue]] = {}
        skipped: dict[str, str] = {}
        failures: dict[str, QuantAssetsError] = {}
        with clear_failures():
            text = evaluation_text("auto", root.cache)
            known_prompts = load_prompts(root.data / "obedience")
            prompts = spread_prompts(known_prompts, config.obedience_prompts)
            store = QualityStore(root.results, root.cache)
            for name in context.partition_keys:
                artifact = find(variants[name])
                if artifact is None or baseline is None:
                    skipped[name] = "it has no artifact" if baseline else "there is no F16 baseline"
                    context.log.warning(f"skipped {name}: {skipped[name]}")
                    continue
                backend = backend_of(variants[name], llama_cpp, torch)
                subject = Subject(model.name, variants[name], artifact, settings)
                try:
                    quality = backend.quality(
                        context, subject, baseline, text, store, config.windows
                    )
                    kv_cache = (
                        None
                        if variants[name].has_f16_cache or not config.kv_cache_windows
                        else backend.kv_cache_quality(
                            context,
                            subject,
                            text,
                            root.results,
                            contexts=model.kv_cache_contexts,
                            windows=config.kv_cache_windows,
                        )
                    )
                    obedience = (
                        backend.obedience(context, subject, prompts, root.results)
                        if config.obedience
                        else None
                    )
                except QuantAssetsError as error:
                    failures[name] = error
                    context.log.error(f"{name} failed: {error}")
                    continue
                measured[name] = {
                    **_quality_metadata(quality, obedience, len(known_prompts)),
                    **(_kv_cache_metadata(kv_cache) if kv_cache else {}),
                }
        observe_skipped(context, skipped)
        complete = not skipped and not failures
        yield from materialized_partitions(context, measured, complete=complete)
        if failures:
            with clear_failures():
                raise first_failure(failures)

    return variant_quality_results


def _kv_cache_metadata(result: KvCacheResult) -> dict[str, dg.MetadataValue]:
    """What the cache types cost at each context, against an F16 cache."""
    numbers: dict[str, float | None] = {}
    for measured in result.contexts:
        ratio, divergence = measured.perplexity_ratio_interval, measured.kl_divergence_interval
        at = f"KV cache at {measured.context} tokens"
        numbers |= {
            f"{at}: perplexity ratio to an F16 cache": measured.perplexity_ratio,
            f"{at}: ratio, low": ratio and ratio.low,
            f"{at}: ratio, high": ratio and ratio.high,
            f"{at}: KL divergence (nats)": measured.kl_divergence,
            f"{at}: KL divergence, low": divergence and divergence.low,
            f"{at}: KL divergence, high": divergence and divergence.high,
        }
    return {
        name: dg.MetadataValue.float(value) for name, value in numbers.items() if value is not None
    }


def _quality_metadata(
    quality: QualityResult, obedience: ObedienceResult | None, known_prompts: int
) -> dict[str, dg.MetadataValue]:
    measurement = quality.measurement
    ratio, divergence = measurement.perplexity_ratio_interval, measurement.kl_divergence_interval
    p99 = measurement.kl_divergence_p99_interval
    numbers = {
        "perplexity": measurement.perplexity,
        "perplexity, standard error": measurement.perplexity_standard_error,
        "perplexity ratio to F16": measurement.perplexity_ratio,
        "perplexity ratio to F16, low": ratio and ratio.low,
        "perplexity ratio to F16, high": ratio and ratio.high,
        "KL divergence from F16 (nats)": measurement.kl_divergence,
        "KL divergence from F16, low": divergence and divergence.low,
        "KL divergence from F16, high": divergence and divergence.high,
        "KL divergence from F16, p99": measurement.kl_divergence_p99,
        "KL divergence from F16, p99, low": p99 and p99.low,
        "KL divergence from F16, p99, high": p99 and p99.high,
        "top-1 agreement with F16": measurement.top1_agreement,
        "obedience pass rate": obedience.pass_rate if obedience else None,
        "obedience pass rate, low": obedience.pass_rate_interval.low if obedience else None,
        "obedience pass rate, high": obedience.pass_rate_interval.high if obedience else None,
    }
    by_category = obedience.pass_rate_by_category if obedience else {}
    answered = f"{len(obedience.transcripts)} of {known_prompts}" if obedience else "none"
    return {
        **{
            name: dg.MetadataValue.float(value)
            for name, value in numbers.items()
            if value is not None
        },
        **{
            f"obedience: {category}": dg.MetadataValue.float(rate)
            for category, rate in by_category.items()
        },
        "obedience prompts": dg.MetadataValue.text(answered),
        "text": dg.MetadataValue.text(
            f"{quality.text}, {measurement.windows} windows of {measurement.context} tokens"
        ),
        "artifact": dg.MetadataValue.text(quality.artifact_id),
    }
