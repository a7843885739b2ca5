"""The benchmark record: one cell's summary, as written to the result files."""

import datetime
import uuid
from typing import Any, NamedTuple, Self

from pydantic import BaseModel, ConfigDict, Field, computed_field, model_validator

from quant_assets.bench.jobs import CellMeasurement
from quant_assets.bench.obedience.measurement import ObedienceResult
from quant_assets.bench.quality import QualityResult
from quant_assets.bench.settings import BenchSettings
from quant_assets.bench.statistics import (
    MINIMUM_RUNS_FOR_P95,
    RateInterval,
    summarize,
    wilson_interval,
)
from quant_assets.bench.variants import Backend, Variant
from quant_assets.formats.artifact_formats import ArtifactFormat
from quant_assets.host.conditions import HostConditions
from quant_assets.record_files import Count, SequenceCount, TokenCount, UtcTime
from quant_assets.window_intervals import Interval

SCHEMA_FILE_NAME = "benchmark_record.schema.json"

_FIRST_COLUMNS = (
    "model", "variant", "batch_size", "warmups", "runs", "timestamp", "p50", "p95", "peak_rss",
    "load_time_ms", "command_duration_ms", "obedience_pass_rate", "token_throughput",
)  # fmt: skip


class RecordMetadata(BaseModel):
    """Subject, settings, software and host of a measurement. Null: unknown."""

    model_config = ConfigDict(extra="forbid")

    variant: str
    format: ArtifactFormat | None
    level: str | None
    cache_type_k: str | None
    cache_type_v: str | None
    batch_size: SequenceCount
    warmups: Count
    runs: Count
    timestamp: UtcTime
    prompt_tokens: TokenCount
    generated_tokens: TokenCount
    model: str
    artifact_id: str
    backend: Backend
    device: str
    threads: Count | None
    library_versions: dict[str, str]
    build_flags: str | None
    cpu_name: str | None
    gpu_name: str | None
    host_id: str | None = Field(
        default=None,
        description=(
            "Anonymous id of the machine (quant_assets/host/identity.py); null for endpoints and "
            "in older records."
        ),
    )
    host_load: HostConditions | None

    @property
    def processor(self) -> str | None:
        """The GPU or CPU that ran it, as it reports its name."""
        return self.gpu_name or self.cpu_name


class BenchmarkRecord(BaseModel):
    """The measurement of one cell (variant x batch size). Null: not measured.

    A run is one prefill of `prompt_tokens` tokens and `generated_tokens` decoding steps for all
    `batch_size` sequences together. `p50_ms`, `p95_ms`, `mean_ms` and `stddev_ms` are over whole
    runs; `ttft_*` over the time to first token; `per_token_*` over single decoding steps of all
    runs. Throughputs are tokens over the median prefill or decoding time of a run, for all
    sequences together or for one of them. Memory is in bytes; `peak_rss_bytes` is that of
    the worker process alone. `kv_cache_bytes` is reported by the backend,
    `kv_cache_bytes_expected` computed from the model's shape. `p95_flagged`: too few runs for a
    95th percentile.

    `p50`, `p95`, `peak_rss`, `token_throughput`, `variant`, `batch_size`, `warmups`, `runs` and
    `timestamp` repeat fields with more exact names, or of `metadata`. They, and the interval of the
    pass rate, are written, and derived again when a record is read, so older records have them.
    """

    model_config = ConfigDict(extra="forbid")

    record_id: str
    p50_ms: float
    p95_ms: float
    p95_flagged: bool
    mean_ms: float
    stddev_ms: float | None
    ttft_p50_ms: float | None
    ttft_p95_ms: float | None
    per_token_p50_ms: float | None
    per_token_p95_ms: float | None
    prefill_tokens_per_s: float | None
    prefill_tokens_per_s_per_sequence: float | None
    decode_tokens_per_s: float | None
    decode_tokens_per_s_per_sequence: float | None
    load_time_ms: float | None = Field(
        description="Time in which the worker loaded the model and created its context, ms."
    )
    command_duration_ms: float | None = Field(
        default=None,
        ge=0,
        description=(
            "Time from the start of the cell's worker process to its end, ms: start-up, loading, "
            "warm-ups and runs; on an endpoint, all its requests. Null in older records."
        ),
    )
    peak_rss_bytes: int | None
    peak_vram_bytes: int | None
    kv_cache_bytes: int | None
    kv_cache_bytes_expected: int | None
    obedience_pass_rate: float | None = Field(default=None, ge=0, le=1)
    obedience_prompts: Count | None = Field(
        default=None, description="Number of prompts that `obedience_pass_rate` is over."
    )
    perplexity: float | None = None
    perplexity_standard_error: float | None = None
    perplexity_ratio: float | None = Field(
        default=None,
        description="Perplexity over that of F16 on the same tokens; with its 95% interval.",
    )
    perplexity_ratio_low: float | None = None
    perplexity_ratio_high: float | None = None
    kl_divergence: float | None = Field(
        default=None,
        description="KL divergence from F16, nats per token; with its 95% interval.",
    )
    kl_divergence_low: float | None = None
    kl_divergence_high: float | None = None
    top1_agreement: float | None = Field(default=None, ge=0, le=1)
    quality_text: str | None = Field(
        default=None,
        description="Text that perplexity was measured on: only on equal texts do values compare.",
    )
    quality_text_sha256: str | None = None
    quality_windows: Count | None = None
    quality_context_tokens: Count | None = None
    contended: bool | None
    samples_file: str | None = None
    metadata: RecordMetadata

    @model_validator(mode="before")
    @classmethod
    def _without_derived_fields(cls, content: Any) -> Any:
        if not isinstance(content, dict):
            return content
        derived = cls.model_computed_fields
        return {name: value for name, value in content.items() if name not in derived}

    @computed_field  # type: ignore[prop-decorator]
    @property
    def variant(self) -> str:
        """Name of the variant."""
        return self.metadata.variant

    @computed_field  # type: ignore[prop-decorator]
    @property
    def batch_size(self) -> int:
        """Sequences served at once."""
        return self.metadata.batch_size

    @computed_field  # type: ignore[prop-decorator]
    @property
    def warmups(self) -> int:
        """Unmeasured runs before the measured ones."""
        return self.metadata.warmups

    @computed_field  # type: ignore[prop-decorator]
    @property
    def runs(self) -> int:
        """Measured runs."""
        return self.metadata.runs

    @computed_field  # type: ignore[prop-decorator]
    @property
    def timestamp(self) -> datetime.datetime:
        """Time of the measurement, UTC."""
        return self.metadata.timestamp

    @computed_field  # type: ignore[prop-decorator]
    @property
    def p50(self) -> float:
        """Median duration of a whole run, ms (`p50_ms`)."""
        return self.p50_ms

    @computed_field  # type: ignore[prop-decorator]
    @property
    def p95(self) -> float:
        """95th percentile of the duration of a whole run, ms (`p95_ms`)."""
        return self.p95_ms

    @computed_field  # type: ignore[prop-decorator]
    @property
    def peak_rss(self) -> int | None:
        """Peak resident memory of the worker process, bytes (`peak_rss_bytes`)."""
        return self.peak_rss_bytes

    @computed_field  # type: ignore[prop-decorator]
    @property
    def token_throughput(self) -> float | None:
        """Decoded tokens/s, all sequences together (`decode_tokens_per_s`)."""
        return self.decode_tokens_per_s

    @computed_field  # type: ignore[prop-decorator]
    @property
    def obedience_pass_rate_low(self) -> float | None:
        """Lower bound of the 95% Wilson interval of `obedience_pass_rate`."""
        interval = self._obedience_interval()
        return interval and interval.low

    @computed_field  # type: ignore[prop-decorator]
    @property
    def obedience_pass_rate_high(self) -> float | None:
        """Upper bound of the 95% Wilson interval of `obedience_pass_rate`."""
        interval = self._obedience_interval()
        return interval and interval.high

    def _obedience_interval(self) -> RateInterval | None:
        """None where the number of prompts is unknown, as in older records."""
        rate, prompts = self.obedience_pass_rate, self.obedience_prompts
        if rate is None or not prompts:
            return None
        return wilson_interval(round(rate * prompts), prompts)

    @property
    def perplexity_ratio_interval(self) -> Interval | None:
        """The 95% interval of `perplexity_ratio`; None in older records."""
        low, high = self.perplexity_ratio_low, self.perplexity_ratio_high
        return None if low is None or high is None else Interval(low, high)

    def with_quality(
        self, quality: QualityResult | None = None, obedience: ObedienceResult | None = None
    ) -> Self:
        """The record with its variant's quality and obedience; a null argument changes nothing."""
        update: dict[str, Any] = {}
        if quality is not None:
            measured = quality.measurement
            ratio, divergence = measured.perplexity_ratio_interval, measured.kl_divergence_interval
            update |= {
                "perplexity": measured.perplexity,
                "perplexity_standard_error": measured.perplexity_standard_error,
                "perplexity_ratio": measured.perplexity_ratio,
                "perplexity_ratio_low": ratio and ratio.low,
                "perplexity_ratio_high": ratio and ratio.high,
                "kl_divergence": measured.kl_divergence,
                "kl_divergence_low": divergence and divergence.low,
                "kl_divergence_high": divergence and divergence.high,
                "top1_agreement": measured.top1_agreement,
                "quality_text": quality.text,
                "quality_text_sha256": quality.text_sha256,
                "quality_windows": measured.windows,
                "quality_context_tokens": measured.context,
            }
        if obedience is not None:
            update["obedience_pass_rate"] = obedience.pass_rate
            update["obedience_prompts"] = len(obedience.transcripts)
        return self.model_copy(update=update)

    def flat(self) -> dict[str, Any]:
        """The record as one flat row for tables: the main columns, metadata, then measurements.

        Of the host's conditions, load average, other processes' busy cores and the reasons are
        kept; library versions become one string.
        """
        row = self.model_dump(mode="json", exclude={"metadata"})
        metadata = self.metadata.model_dump(mode="json", exclude={"library_versions", "host_load"})
        versions = self.metadata.library_versions
        host = self.metadata.host_load
        values = {**metadata, **row}
        return {
            **{name: values[name] for name in _FIRST_COLUMNS},
            **values,
            "library_versions": "; ".join(f"{name}=={versions[name]}" for name in sorted(versions)),
            "host_load_average_1m": host.load_average_1m if host else None,
            "host_others_busy_cores": host.others_busy_cores if host else None,
            "contended_reasons": "; ".join(host.reasons) if host else None,
        }


class RecordOrigin(NamedTuple):
    """Where a record's numbers come from.

    An endpoint has neither `variant` nor `threads` nor `host_id`, and its address stands for the
    artifact id.
    """

    model_name: str
    variant_name: str
    variant: Variant | None
    artifact_id: str
    backend: Backend
    threads: int | None
    host_id: str | None = None


def make_record(
    measurement: CellMeasurement,
    origin: RecordOrigin,
    settings: BenchSettings,
    batch_size: int,
    *,
    command_duration_ms: float | None = None,
) -> BenchmarkRecord:
    """Summarize the measurements of a cell's worker, or of an endpoint."""
    variant = origin.variant
    samples = measurement.samples
    total = summarize([sample.total_ms for sample in samples])
    first = summarize([sample.time_to_first_token_ms for sample in samples])
    steps = [step for sample in samples for step in sample.token_ms]
    step = summarize(steps) if steps else None
    prefill_rate = settings.prompt_tokens / (first.p50 / 1000)
    decode_p50_ms = summarize([sum(sample.token_ms) for sample in samples]).p50
    decoded = len(steps) / len(samples)
    decode_rate = decoded / (decode_p50_ms / 1000) if decode_p50_ms > 0 else None
    conditions = measurement.conditions
    gguf = variant is not None and variant.format == "gguf"
    return BenchmarkRecord(
        record_id=uuid.uuid4().hex,
        p50_ms=total.p50,
        p95_ms=total.p95,
        p95_flagged=len(samples) < MINIMUM_RUNS_FOR_P95,
        mean_ms=total.mean,
        stddev_ms=total.stddev,
        ttft_p50_ms=first.p50,
        ttft_p95_ms=first.p95,
        per_token_p50_ms=step.p50 if step else None,
        per_token_p95_ms=step.p95 if step else None,
        prefill_tokens_per_s=prefill_rate * batch_size,
        prefill_tokens_per_s_per_sequence=prefill_rate,
        decode_tokens_per_s=None if decode_rate is None else decode_rate * batch_size,
        decode_tokens_per_s_per_sequence=decode_rate,
        load_time_ms=measurement.load_time_ms,
        command_duration_ms=command_duration_ms,
        peak_rss_bytes=measurement.peak_rss_bytes,
        peak_vram_bytes=measurement.peak_vram_bytes,
        kv_cache_bytes=measurement.kv_cache_bytes,
        kv_cache_bytes_expected=measurement.kv_cache_bytes_expected,
        contended=conditions.contended if conditions else None,
        metadata=RecordMetadata(
            variant=origin.variant_name,
            format=variant.format if variant else None,
            level=variant.level if variant else None,
            cache_type_k=variant.cache_type_k if variant and gguf else None,
            cache_type_v=variant.cache_type_v if variant and gguf else None,
            batch_size=batch_size,
            warmups=settings.warmups,
            runs=settings.runs,
            timestamp=datetime.datetime.now(datetime.UTC),
            prompt_tokens=settings.prompt_tokens,
            generated_tokens=settings.generated_tokens,
            model=origin.model_name,
            artifact_id=origin.artifact_id,
            backend=origin.backend,
            device=measurement.device,
            threads=origin.threads,
            library_versions=measurement.library_versions,
            build_flags=measurement.build_flags or None,
            cpu_name=measurement.cpu_name,
            gpu_name=measurement.gpu_name,
            host_id=origin.host_id,
            host_load=conditions,
        ),
    )


def record_schema() -> dict[str, Any]:
    """The JSON Schema of a result file: an array of records."""
    record = BenchmarkRecord.model_json_schema(mode="serialization")
    definitions = record.pop("$defs")
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Benchmark records",
        "type": "array",
        "items": {"$ref": "#/$defs/BenchmarkRecord"},
        "$defs": {**definitions, "BenchmarkRecord": record},
    }
