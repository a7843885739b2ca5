"""Thresholds: the limits of benchmark records, by model and variant."""

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from quant_assets.bench.record import BenchmarkRecord
from quant_assets.errors import CheckFailed, InputError
from quant_assets.window_intervals import Interval, certainly_exceeds

ANY = "*"


class Threshold(BaseModel):
    """Limits of a record; null: no limit.

    `p95_ms`, `rss_max_mb` (MB = 10^6 bytes) and `perplexity_ratio` are upper limits,
    `obedience_pass_rate` is a lower one, breached when the upper bound of the rate's 95% interval
    is below it. A perplexity ratio breaches its limit when its whole 95% interval is over it.
    """

    model_config = ConfigDict(extra="forbid")

    p95_ms: float | None = Field(default=None, gt=0)
    rss_max_mb: float | None = Field(default=None, gt=0)
    obedience_pass_rate: float | None = Field(default=None, ge=0, le=1)
    perplexity_ratio: float | None = Field(default=None, gt=0)


class Breach(NamedTuple):
    """One limit that a record breaches."""

    model: str
    variant: str
    batch_size: int
    record_id: str
    name: str
    value: float
    limit: float
    interval: Interval | None = None

    def __str__(self) -> str:
        reach = (
            f" ({self.interval.low:.4g} to {self.interval.high:.4g})"
            if self.interval is not None
            else ""
        )
        return (
            f"{self.model} {self.variant} batch {self.batch_size}: {self.name} is "
            f"{self.value:g}{reach}, the limit is {self.limit:g}"
        )


class Thresholds(BaseModel):
    """Limits by model and variant; `*` stands for any. The most specific entry gives each limit."""

    model_config = ConfigDict(extra="forbid")

    models: dict[str, dict[str, Threshold]] = {}

    def of(self, model: str, variant: str) -> Threshold:
        """The limits of a variant of a model."""
        merged: dict[str, float] = {}
        for model_key, variant_key in ((ANY, ANY), (ANY, variant), (model, ANY), (model, variant)):
            entry = self.models.get(model_key, {}).get(variant_key)
            if entry is not None:
                merged.update(entry.model_dump(exclude_none=True))
        return Threshold.model_validate(merged)

    def breaches(self, record: BenchmarkRecord) -> list[Breach]:
        """The limits that a record breaches. Values that were not measured breach none."""
        metadata = record.metadata
        limits = self.of(metadata.model, metadata.variant)
        rss_mb = None if record.peak_rss_bytes is None else record.peak_rss_bytes / 1e6
        ratio = record.perplexity_ratio_interval
        upper: tuple[tuple[str, float | None, Interval | None, float | None], ...] = (
            ("p95_ms", record.p95_ms, None, limits.p95_ms),
            ("rss_max_mb", rss_mb, None, limits.rss_max_mb),
            ("perplexity_ratio", record.perplexity_ratio, ratio, limits.perplexity_ratio),
        )
        rate, lowest = record.obedience_pass_rate, limits.obedience_pass_rate
        highest_rate = record.obedience_pass_rate_high
        if highest_rate is None:  # an older record does not say how many prompts it had
            highest_rate = rate
        found = [
            (name, value, limit, interval)
            for name, value, interval, limit in upper
            if value is not None and limit is not None and certainly_exceeds(value, interval, limit)
        ]
        if (
            rate is not None
            and highest_rate is not None
            and lowest is not None
            and highest_rate < lowest
        ):
            found.append(("obedience_pass_rate", rate, lowest, None))
        return [
            Breach(metadata.model, metadata.variant, metadata.batch_size, record.record_id, *item)
            for item in found
        ]


def load_thresholds(path: Path) -> Thresholds:
    """Read the thresholds of a YAML file; raise `InputError` when it is invalid."""
    try:
        return Thresholds.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")) or {})
    except (OSError, yaml.YAMLError, ValidationError) as error:
        raise InputError(
            f"The thresholds {path} cannot be used.",
            str(error),
            "Correct the file; `data/bench_thresholds.yaml` in the project shows the format.",
        ) from error


def check_records(records: Iterable[BenchmarkRecord], thresholds: Thresholds) -> None:
    """Raise `CheckFailed` when any record breaches a threshold."""
    breaches = [breach for record in records for breach in thresholds.breaches(record)]
    if breaches:
        raise CheckFailed(
            f"{len(breaches)} benchmark threshold(s) are breached.",
            "; ".join(map(str, breaches)) + ".",
            "Find what made it slower, larger or worse, or correct the thresholds file.",
        )
