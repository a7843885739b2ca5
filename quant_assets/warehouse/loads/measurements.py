"""Tables from the result files: benchmark runs, quality, and peaks of processors."""

from pathlib import Path
from typing import Any

import duckdb

from quant_assets.bench.jobs import QualityMeasurement
from quant_assets.bench.kv_cache import kv_cache_results
from quant_assets.bench.obedience.measurement import obedience_results
from quant_assets.bench.quality import QualityStore
from quant_assets.bench.results import ResultStore
from quant_assets.gpus.registry import GpuRegistry, load_registry
from quant_assets.speed.host_peaks import recorded_peaks
from quant_assets.warehouse.loads.tables import replace_rows
from quant_assets.window_intervals import Interval


def load_benchmarks(
    connection: duckdb.DuckDBPyConnection,
    results: ResultStore,
    registry: GpuRegistry | None = None,
) -> int:
    """Load `raw.benchmark_runs` from the result files; return its row count.

    `gpu` is the card of the registry that the driver's name means; null if it could mean several.
    """
    known = registry or load_registry()
    rows = []
    for record in results.records():
        gpu = known.reported(record.metadata.gpu_name) if record.metadata.gpu_name else None
        rows.append({**record.flat(), "gpu": gpu.canonical_name if gpu else None})
    return replace_rows(connection, "benchmark_runs", rows)


def load_variant_quality(
    connection: duckdb.DuckDBPyConnection, quality: QualityStore, results: Path
) -> int:
    """Load `raw.variant_quality` from the quality and obedience files; return its row count."""
    rows: list[dict[str, Any]] = [
        {
            "kind": "perplexity",
            "measured_at": result.timestamp,
            "context_tokens": result.measurement.context,
            **result.model_dump(
                include={
                    "model", "variant", "artifact_id", "baseline_artifact_id", "text", "text_sha256",
                }
            ),
            **_measured(result.measurement),
        }
        for result in quality.all()
    ]  # fmt: skip
    rows += [
        {
            "kind": "obedience",
            "measured_at": result.timestamp,
            "obedience_prompts": len(result.transcripts),
            "obedience_pass_rate": result.pass_rate,
            "obedience_pass_rate_low": result.pass_rate_interval.low,
            "obedience_pass_rate_high": result.pass_rate_interval.high,
            **result.model_dump(include={"model", "variant", "artifact_id"}),
        }
        for result in obedience_results(results)
    ]
    return replace_rows(connection, "variant_quality", rows)


def load_kv_cache_quality(connection: duckdb.DuckDBPyConnection, results: Path) -> int:
    """Load `raw.kv_cache_quality`, a row per result and context; return its row count."""
    named = {
        "model",
        "variant",
        "artifact_id",
        "cache_type_k",
        "cache_type_v",
        "text",
        "text_sha256",
    }
    rows = [
        {
            "measured_at": result.timestamp,
            "context_tokens": measured.context,
            "f16_cache_perplexity": measured.baseline_perplexity,
            **result.model_dump(include=named),
            **_measured(measured),
        }
        for result in kv_cache_results(results)
        for measured in result.contexts
    ]
    return replace_rows(connection, "kv_cache_quality", rows)


def _measured(measurement: QualityMeasurement) -> dict[str, Any]:
    """The figures that all tables of quality have, with the bounds of their intervals."""
    fields = {
        "windows", "scored_tokens", "perplexity", "perplexity_standard_error", "perplexity_ratio",
        "kl_divergence", "kl_divergence_p99", "top1_agreement",
    }  # fmt: skip
    row = measurement.model_dump(include=fields)
    for name in ("perplexity_ratio", "kl_divergence", "kl_divergence_p99"):
        interval: Interval | None = getattr(measurement, f"{name}_interval")
        row[f"{name}_low"] = interval and interval.low
        row[f"{name}_high"] = interval and interval.high
    return row


def load_hosts(connection: duckdb.DuckDBPyConnection, results: Path) -> int:
    """Load `raw.hosts` from the measured peaks; return its row count."""
    rows = [
        peaks.model_dump(exclude={"library_versions", "attempts"})
        for peaks in recorded_peaks(results)
    ]
    return replace_rows(connection, "hosts", rows)
