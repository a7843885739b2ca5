"""The content of the decision report, read from the marts."""

import datetime
from typing import Any, TypeVar

import duckdb
from pydantic import BaseModel

from quant_assets.warehouse.staleness import BENCHMARKS_STALE_AFTER, LISTINGS_STALE_AFTER

_CONTEXT = 8192
_PLACES = 3
_EXAMPLES = 2

RowT = TypeVar("RowT", bound=BaseModel)


class Conditions(BaseModel):
    """The conditions of a measurement of speed; None where unknown or not measured.

    `conditions_recency` ranks the conditions of a model, 1 for those measured last.
    """

    processor: str | None
    host_id: str | None
    threads: int | None
    prompt_tokens: int | None
    generated_tokens: int | None
    conditions_recency: int | None

    @property
    def measured_on(self) -> str:
        """Processor, threads and machine, or a dash."""
        if self.processor is None:
            return "–"
        threads = f", {self.threads} threads" if self.threads else ""
        return f"{self.processor}{threads}{f', host {self.host_id}' if self.host_id else ''}"

    @property
    def lengths(self) -> str:
        """Prompt and generated tokens, or a dash."""
        if self.prompt_tokens is None or self.generated_tokens is None:
            return "–"
        return f"{self.prompt_tokens} + {self.generated_tokens}"


class VariantFigures(Conditions):
    """A variant's size, speed at batch 1 under conditions, and quality; None where not measured."""

    model: str
    variant: str
    size_gb: float
    bits_per_weight: float
    decode_tokens_per_s: float | None
    perplexity: float | None
    perplexity_standard_error: float | None
    quality_loss: float | None
    quality_loss_low: float | None
    quality_loss_high: float | None
    quality_basis: str
    unmeasured_because: str | None
    obedience_pass_rate: float | None
    obedience_pass_rate_low: float | None
    obedience_pass_rate_high: float | None
    is_pareto: bool | None
    dominated_by: str | None

    @property
    def variant_of_model(self) -> tuple[str, str]:
        """Model and variant, which have a row for each set of conditions."""
        return self.model, self.variant

    @property
    def perplexity_with_error(self) -> str:
        """Perplexity with its standard error as llama.cpp prints it, or a dash."""
        return _with_error(self.perplexity, self.perplexity_standard_error)

    @property
    def loss_interval(self) -> str:
        """The 95% interval of a measured loss, or nothing."""
        if self.quality_basis != "measured":
            return ""
        return _percent_interval(self.quality_loss_low, self.quality_loss_high)

    @property
    def obedience(self) -> str:
        """The pass rate with its 95% interval, or a dash."""
        rate, low, high = (
            self.obedience_pass_rate,
            self.obedience_pass_rate_low,
            self.obedience_pass_rate_high,
        )
        if rate is None:
            return "–"
        return (
            f"{rate:.0%}"
            if low is None or high is None
            else f"{rate:.0%} ({low:.0%} to {high:.0%})"
        )


class KvCacheFigures(BaseModel):
    """What a variant's KV cache types alone cost at one context, against an F16 cache."""

    model: str
    variant: str
    cache_type_k: str
    cache_type_v: str
    context_tokens: int
    windows: int
    perplexity: float
    perplexity_standard_error: float | None
    perplexity_ratio: float
    perplexity_ratio_low: float | None
    perplexity_ratio_high: float | None
    kl_divergence: float | None
    kl_divergence_low: float | None
    kl_divergence_high: float | None

    @property
    def perplexity_with_error(self) -> str:
        """Perplexity with its standard error as llama.cpp prints it."""
        return _with_error(self.perplexity, self.perplexity_standard_error)

    @property
    def loss_interval(self) -> str:
        """The 95% interval of the loss, or nothing."""
        low, high = self.perplexity_ratio_low, self.perplexity_ratio_high
        return _percent_interval(low and low - 1, high and high - 1)

    @property
    def divergence(self) -> str:
        """The KL divergence with its 95% interval, or a dash."""
        if self.kl_divergence is None:
            return "–"
        low, high = self.kl_divergence_low, self.kl_divergence_high
        known = low is not None and high is not None
        return f"{self.kl_divergence:.4f}" + (f" ({low:.4f} to {high:.4f})" if known else "")


def _with_error(perplexity: float | None, error: float | None) -> str:
    if perplexity is None:
        return "–"
    return f"{perplexity:.3f}" + ("" if error is None else f" ± {error:.3f}")


def _percent_interval(low: float | None, high: float | None) -> str:
    return "" if low is None or high is None else f"{low:+.2%} to {high:+.2%}"


class Cell(Conditions):
    """The newest benchmark record of a cell under its conditions."""

    model: str
    variant: str
    batch_size: int
    runs: int
    p50_ms: float
    p95_ms: float
    decode_tokens_per_s: float | None
    prefill_tokens_per_s: float | None
    peak_rss_bytes: int | None
    contended: bool | None
    measured_at: datetime.datetime


class CardOffer(BaseModel):
    """The cheapest offer of a card, to buy or to rent."""

    gpu: str
    price_kind: str
    price_per_gpu_usd: float
    vram_gb: float
    capacity_7b: int


class RecommendedOption(BaseModel):
    """A row of the mart `recommendations`."""

    model: str
    context_tokens: int
    batch_size: int
    price_kind: str
    place: int
    variant: str
    gpu: str
    gpu_count: int
    seller: str | None
    price_usd: float
    decode_tokens_per_s: float
    decode_tokens_per_s_low: float
    decode_tokens_per_s_high: float
    speed_basis: str
    speed_runs: int
    usd_per_million_tokens: float
    quality_loss: float | None
    quality_loss_low: float | None
    quality_loss_high: float | None
    quality_basis: str
    reason: str

    @property
    def loss_interval(self) -> str:
        """The 95% interval of a measured loss, or nothing."""
        if self.quality_basis != "measured":
            return ""
        return _percent_interval(self.quality_loss_low, self.quality_loss_high)


class QuarantinedCount(BaseModel):
    """How many rows one reason set aside, with some of their titles."""

    reason: str
    rows: int
    examples: list[str]


class DecisionReport(BaseModel):
    """The content of the whole report."""

    written_at: datetime.datetime
    listings_read_at: datetime.datetime | None
    models: list[str]
    offers: int
    cards: int
    variants: list[VariantFigures]
    kv_caches: list[KvCacheFigures]
    cells: list[Cell]
    card_offers: list[CardOffer]
    recommendations: list[RecommendedOption]
    quarantine: list[QuarantinedCount]
    stale: list[str]


def gather(
    connection: duckdb.DuckDBPyConnection,
    *,
    now: datetime.datetime,
    listings_read_at: datetime.datetime | None,
) -> DecisionReport:
    """Read the marts; `listings_read_at` is the time at which the listing files were last read."""
    variants = _rows(
        connection,
        VariantFigures,
        """
        select pareto.*, quality.perplexity, quality.perplexity_standard_error,
            quality.obedience_pass_rate, quality.obedience_pass_rate_low,
            quality.obedience_pass_rate_high
        from marts.pareto_variants as pareto
        inner join marts.variant_quality as quality using (model, variant)
        order by model, conditions_recency nulls first, size_gb desc, variant
        """,
    )
    cells = _rows(
        connection,
        Cell,
        "select * from marts.variant_benchmarks "
        "order by model, variant, batch_size, measured_at desc",
    )
    recommendations = _rows(
        connection,
        RecommendedOption,
        """
        select * from marts.recommendations
        where place <= $places
        qualify context_tokens = max(
            case when context_tokens <= $context then context_tokens end
        ) over (partition by model)
        order by model, batch_size, price_kind, place
        """,
        {"places": _PLACES, "context": _CONTEXT},
    )
    ((offers, cards),) = connection.execute(
        "select count(*), count(distinct gpu) from marts.listing_capacity"
    ).fetchall()
    return DecisionReport(
        written_at=now,
        listings_read_at=listings_read_at,
        models=sorted({row.model for row in variants}),
        offers=offers,
        cards=cards,
        variants=variants,
        kv_caches=_rows(
            connection,
            KvCacheFigures,
            "select * from marts.kv_cache_quality order by model, variant, context_tokens",
        ),
        cells=cells,
        card_offers=_rows(
            connection,
            CardOffer,
            """
            select * from marts.listing_capacity
            where price_per_gpu_usd is not null and capacity_7b is not null
            qualify row_number() over (
                partition by gpu, price_kind order by price_per_gpu_usd, row_id
            ) = 1
            order by price_kind, price_per_gpu_usd
            """,
        ),
        recommendations=recommendations,
        quarantine=_rows(
            connection,
            QuarantinedCount,
            f"""
            select reason, count(*) as rows,
                coalesce(list(distinct title order by title)[1:{_EXAMPLES}], []) as examples
            from staging.stg_quarantined_listings group by reason order by 2 desc, 1
            """,  # noqa: S608, a constant
        ),
        stale=_stale(connection, now, listings_read_at),
    )


def _stale(
    connection: duckdb.DuckDBPyConnection,
    now: datetime.datetime,
    listings_read_at: datetime.datetime | None,
) -> list[str]:
    """One sentence per stale, missing or contended measurement, and for stale listings."""
    found = []
    if listings_read_at is None:
        found.append("The listings have never been read.")
    elif now - listings_read_at > LISTINGS_STALE_AFTER:
        found.append(f"The listings were read {_age(now - listings_read_at)} ago.")
    for model, variant, current, newest in connection.execute(
        """
        select model, variant, bool_or(artifact_is_current), max(measured_at)
        from marts.variant_benchmarks group by all order by all
        """
    ).fetchall():
        if not current:
            found.append(f"{model} {variant}: its artifact was rebuilt after it was measured.")
        elif now - newest > BENCHMARKS_STALE_AFTER:
            found.append(f"{model} {variant}: it was measured {_age(now - newest)} ago.")
    for model, variant, unmeasured_speed, quality_problem, contended in connection.execute(
        """
        select model, variant, bool_and(decode_tokens_per_s is null),
            any_value(unmeasured_because),
            coalesce(arg_min(any_contended, conditions_recency), false)
        from marts.pareto_variants group by model, variant order by model, variant
        """
    ).fetchall():
        for applies, problem in (
            (unmeasured_speed, "its speed at batch 1 has not been measured"),
            (quality_problem, quality_problem),
            (contended, "its speed was measured while other processes were busy"),
        ):
            if applies:
                found.append(f"{model} {variant}: {problem}.")
    return found


def _age(age: datetime.timedelta) -> str:
    hours = age.total_seconds() / 3600
    return f"{hours:.0f} hours" if hours < 48 else f"{age.days} days"


def _rows(
    connection: duckdb.DuckDBPyConnection,
    row_type: type[RowT],
    query: str,
    parameters: dict[str, Any] | None = None,
) -> list[RowT]:
    cursor = connection.execute(query, parameters)
    columns = [str(column[0]) for column in cursor.description or []]
    return [
        row_type.model_validate(dict(zip(columns, row, strict=True))) for row in cursor.fetchall()
    ]
