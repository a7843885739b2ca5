"""Asset checks of the graph's invariants; the marts have dbt's tests as their checks."""

from collections.abc import Iterable

import dagster as dg

from quant_assets.artifacts.quality_gate import GATE_PERPLEXITY_RATIO
from quant_assets.assets.conventions import (
    benchmark_results_key,
    gguf_artifacts_key,
    variant_quality_key,
)
from quant_assets.bench.quality import QualityStore, gate_breach, on_one_text
from quant_assets.bench.record import BenchmarkRecord
from quant_assets.bench.results import newest_of_cells
from quant_assets.bench.thresholds import load_thresholds
from quant_assets.errors import CheckFailed
from quant_assets.gpus.registry import load_registry
from quant_assets.listings.stages import check_conservation
from quant_assets.listings.store import ListingStore
from quant_assets.models.config import ModelConfig
from quant_assets.resources.failures import clear_failures
from quant_assets.resources.stores import DataRoot
from quant_assets.speed.checking import SpeedCheck
from quant_assets.speed.model import load_speed_model
from quant_assets.speed.validation import validate_speed_model
from quant_assets.warehouse.staleness import BENCHMARKS_STALE_AFTER, LISTINGS_STALE_AFTER

MATCH_RATE_DROP = 0.05
"""The largest drop of the match rate, as a fraction of all rows, from one run to the next."""
REPORTED_RESOLUTION_BYTES = 2**20 / 100
"""llama.cpp reports buffer sizes in MiB with two decimals."""


def build_checks(models: Iterable[ModelConfig]) -> list[dg.AssetChecksDefinition]:
    """All checks: of the listings, the speed model, and the results of every model."""
    checks = [
        _rows_are_conserved(),
        _cards_are_registered(),
        _match_rate_holds(),
        _speeds_are_true(),
    ]
    for model in models:
        checks += [
            _artifacts_are_whole(model),
            _records_are_plausible(model),
            _thresholds_are_kept(model),
            _quality_is_kept(model),
        ]
    listings = dg.build_last_update_freshness_checks(
        assets=["raw_listings"], lower_bound_delta=LISTINGS_STALE_AFTER
    )
    benchmarks = dg.build_last_update_freshness_checks(
        assets=["benchmark_runs"], lower_bound_delta=BENCHMARKS_STALE_AFTER
    )
    return [*checks, *listings, *benchmarks]


def _rows_are_conserved() -> dg.AssetChecksDefinition:
    @dg.asset_check(
        asset="enriched_listings",
        additional_deps=["raw_listings", "quarantined_listings"],
        description="Rows in = rows enriched + rows quarantined + duplicates collapsed.",
        blocking=True,
    )
    def rows_are_conserved(data_root: DataRoot) -> dg.AssetCheckResult:
        try:
            counts = check_conservation(*ListingStore(data_root.settings.listings).load_all())
        except CheckFailed as error:
            return dg.AssetCheckResult(passed=False, description=str(error))
        return dg.AssetCheckResult(passed=True, metadata=counts)

    return rows_are_conserved


def _cards_are_registered() -> dg.AssetChecksDefinition:
    @dg.asset_check(
        asset="enriched_listings",
        description="Every canonical name is in the GPU registry.",
        blocking=True,
    )
    def cards_are_registered(data_root: DataRoot) -> dg.AssetCheckResult:
        known = {gpu.canonical_name for gpu in load_registry().all}
        with clear_failures(), data_root.warehouse.read() as connection:
            rows = connection.execute(
                "select distinct canonical_name from raw.enriched_listings"
            ).fetchall()
        unknown = sorted({str(name) for (name,) in rows} - known)
        return dg.AssetCheckResult(
            passed=not unknown, metadata={"cards": len(rows), "unknown": ", ".join(unknown)}
        )

    return cards_are_registered


def _match_rate_holds() -> dg.AssetChecksDefinition:
    @dg.asset_check(
        asset="normalized_listings",
        description=(
            "The share of matched rows is at most "
            f"{MATCH_RATE_DROP * 100:.0f} percentage points below that of the previous run."
        ),
    )
    def match_rate_holds(context: dg.AssetCheckExecutionContext) -> dg.AssetCheckResult:
        records = context.instance.fetch_materializations(
            dg.AssetKey("normalized_listings"), limit=2
        ).records
        rates = [
            float(str(record.asset_materialization.metadata["match rate"].value))
            for record in records
            if record.asset_materialization is not None
        ]
        current, previous = rates[0], rates[-1]
        return dg.AssetCheckResult(
            passed=current >= previous - MATCH_RATE_DROP,
            metadata={"match rate": current, "match rate of the previous run": previous},
        )

    return match_rate_holds


def _speeds_are_true() -> dg.AssetChecksDefinition:
    @dg.asset_check(
        asset="expected_speed",
        description=(
            "Predicted speeds and their intervals are true: of every own run, predicted from the "
            "others, and of the published runs that ship."
        ),
    )
    def speeds_are_true(data_root: DataRoot) -> dg.AssetCheckResult:
        published = data_root.settings.data / "published_speeds.csv"
        with clear_failures(), data_root.warehouse.read() as connection:
            found = validate_speed_model(connection, load_registry(), load_speed_model(), published)
        return dg.AssetCheckResult(
            passed=not found.problems,
            metadata={
                **_speed_figures("own runs", found.own_runs),
                **_speed_figures("published runs", found.published_runs),
                "problems": " ".join(found.problems),
            },
        )

    return speeds_are_true


def _speed_figures(name: str, check: SpeedCheck | None) -> dict[str, int | float]:
    """Number of runs, errors, coverage and width of the intervals, as metadata of a check."""
    if check is None:
        return {}
    return {
        f"{name}, {phase}, {figure.replace('_', ' ')}": value
        for phase, figures in (("decode", check.decode.all), ("prefill", check.prefill.all))
        for figure, value in figures.model_dump(exclude_none=True).items()
    }


def _artifacts_are_whole(model: ModelConfig) -> dg.AssetChecksDefinition:
    @dg.asset_check(
        asset=gguf_artifacts_key(model),
        name="artifacts_are_whole",
        description="Every file in the store has the size and SHA-256 that its manifest records.",
    )
    def artifacts_are_whole(data_root: DataRoot) -> dg.AssetCheckResult:
        store = data_root.artifacts
        manifests = [found for found in store.all() if found.job.model_name == model.name]
        damaged = [
            manifest.job_id
            for manifest in manifests
            if store.find(manifest.job_id, verify_content=True) is None
        ]
        return dg.AssetCheckResult(
            passed=bool(manifests) and not damaged,
            metadata={"artifacts": len(manifests), "damaged": ", ".join(damaged)},
        )

    return artifacts_are_whole


def _records_are_plausible(model: ModelConfig) -> dg.AssetChecksDefinition:
    @dg.asset_check(
        asset=benchmark_results_key(model),
        name="records_are_plausible",
        description=(
            "Every record has p50 <= p95, positive throughput, and the KV-cache size that follows "
            "from its types, heads and cells."
        ),
    )
    def records_are_plausible(data_root: DataRoot) -> dg.AssetCheckResult:
        with clear_failures():
            records = data_root.results.find(model=model.name)
        wrong = [record.record_id for record in records if not _plausible(record)]
        return dg.AssetCheckResult(
            passed=bool(records) and not wrong,
            metadata={"records": len(records), "implausible": ", ".join(wrong)},
        )

    return records_are_plausible


def _thresholds_are_kept(model: ModelConfig) -> dg.AssetChecksDefinition:
    @dg.asset_check(
        asset=benchmark_results_key(model),
        name="thresholds_are_kept",
        description=(
            "The newest record of every cell on each processor is within the limits of "
            "bench_thresholds.yaml."
        ),
    )
    def thresholds_are_kept(data_root: DataRoot) -> dg.AssetCheckResult:
        with clear_failures():
            thresholds = load_thresholds(data_root.settings.data / "bench_thresholds.yaml")
            records = data_root.results.find(model=model.name)
        newest = newest_of_cells(records)
        breaches = [str(b) for record in newest for b in thresholds.breaches(record)]
        return dg.AssetCheckResult(
            passed=not breaches, metadata={"cells": len(newest), "breaches": "; ".join(breaches)}
        )

    return thresholds_are_kept


def _quality_is_kept(model: ModelConfig) -> dg.AssetChecksDefinition:
    @dg.asset_check(
        asset=variant_quality_key(model),
        name="quality_is_kept",
        description=(
            "For models of 1B parameters and up, the perplexity of Q4_K_M is at most "
            f"{GATE_PERPLEXITY_RATIO} times that of F16, as far as its 95% interval tells."
        ),
    )
    def quality_is_kept(data_root: DataRoot) -> dg.AssetCheckResult:
        settings = data_root.settings
        artifacts = {found.job_id: found for found in data_root.artifacts.all()}
        known = [
            result
            for result in QualityStore(settings.results, settings.cache).all()
            if result.model == model.name and result.artifact_id in artifacts
        ]
        current = {(result.variant, result.artifact_id) for result in known}
        results = list(on_one_text(known, current).values())
        breaches = [
            breach
            for result in results
            if (
                breach := gate_breach(
                    result,
                    artifacts[result.artifact_id].job.level,
                    artifacts[result.artifact_id].n_parameters,
                )
            )
        ]
        return dg.AssetCheckResult(
            passed=not breaches, metadata={"results": len(results), "breaches": "; ".join(breaches)}
        )

    return quality_is_kept


def _plausible(record: BenchmarkRecord) -> bool:
    return (
        0 < record.p50_ms <= record.p95_ms
        and (record.decode_tokens_per_s or 1) > 0
        and (record.prefill_tokens_per_s or 1) > 0
        and _equal_sizes(record.kv_cache_bytes, record.kv_cache_bytes_expected)
    )


def _equal_sizes(reported: int | None, expected: int | None) -> bool:
    if reported is None or expected is None:
        return True
    return abs(reported - expected) <= REPORTED_RESOLUTION_BYTES
