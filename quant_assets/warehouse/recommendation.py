"""Which variant to run on which offer: one question, answered from the ranked deployment options."""

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import duckdb
from pydantic import BaseModel, ConfigDict, Field, NonNegativeFloat, PositiveFloat, PositiveInt

from quant_assets.errors import InputError

PriceKind = Literal["hourly", "purchase"]
SpeedBasis = Literal["measured", "this GPU", "its architecture", "its maker", "all GPUs"]
"""Runs of the same cell on the same GPU, or the closest runs behind an estimate."""


class Question(BaseModel):
    """A model to serve, and limits on price, speed and quality.

    `max_hourly_usd` and `budget_usd` limit the price of a whole offer; with only one of them, only
    offers to rent, or only offers to buy, qualify. `min_tokens_per_s` applies to every sequence. The
    quality loss is relative to the perplexity of F16 (0.03 is 3% worse); with a limit, a variant
    does not qualify whose loss is certainly over it (the lower bound of its 95% interval is), or has
    not been measured.
    """

    model_config = ConfigDict(frozen=True)

    model: str
    context: PositiveInt = 8192
    batch: PositiveInt = 1
    max_hourly_usd: PositiveFloat | None = None
    budget_usd: PositiveFloat | None = None
    min_tokens_per_s: PositiveFloat | None = None
    max_quality_loss: NonNegativeFloat | None = None
    limit: PositiveInt = Field(default=10, le=1000)


class Recommendation(BaseModel):
    """One variant on one offer. Speeds are of one copy, all its sequences together.

    `speed_basis` and `prefill_basis` say what decoding and prefill rest on, `speed_runs` and
    `prefill_runs` on how many runs.
    """

    place: int
    price_kind: PriceKind
    variant: str
    gpu: str
    gpu_count: int
    seller: str | None
    url: str | None
    price_usd: float
    hourly_cost_usd: float
    usd_per_million_tokens: float
    usd_per_million_tokens_low: float
    usd_per_million_tokens_high: float
    copy_gb: float
    vram_gb: float
    gpus_per_copy: int
    copies: int
    decode_tokens_per_s: float
    decode_tokens_per_s_low: float
    decode_tokens_per_s_high: float
    decode_tokens_per_s_per_sequence: float
    speed_basis: SpeedBasis
    speed_runs: int
    prefill_tokens_per_s: float | None
    prefill_tokens_per_s_low: float | None
    prefill_tokens_per_s_high: float | None
    prefill_basis: SpeedBasis | None
    prefill_runs: int | None
    quality_loss: float | None
    quality_loss_low: float | None
    quality_loss_high: float | None
    quality_basis: Literal["measured", "baseline", "unmeasured"]
    unmeasured_because: str | None
    kv_cache_context_tokens: int | None
    kv_cache_loss: float | None
    kv_cache_loss_low: float | None
    kv_cache_loss_high: float | None
    reason: str


class Answer(BaseModel):
    """The best options, at the point of the serving grid that covers the question.

    `left_out` counts the combinations of offer and variant that do not qualify, by reason.
    """

    question: Question
    context: int
    batch: int
    suitable: int
    recommendations: list[Recommendation]
    left_out: dict[str, int]


class _Point(NamedTuple):
    context: int
    batch: int


_CANDIDATES = """
create or replace temp table candidates as
select
    *,
    case
        when price_kind is null then 'without a price'
        when price_kind = 'hourly' and $hourly is null and $budget is not null
            then 'for rent only'
        when price_kind = 'purchase' and $budget is null and $hourly is not null
            then 'for sale only'
        when price_usd > case price_kind when 'hourly' then $hourly else $budget end
            then 'over budget'
        when not fits then 'too small: the GPUs of the offer do not hold a copy'
        when usd_per_million_tokens is null
            then 'without an expected speed: the memory bandwidth of the GPU is unknown'
        when decode_tokens_per_s_per_sequence < $speed then 'too slow'
        when coalesce(quality_loss_low, quality_loss) > $loss then 'over the limit on quality loss'
        when quality_loss is null and $loss is not null
            then case unmeasured_because
                when 'its quality has not been measured' then 'without a measured quality'
                else 'without a quality measured on the text of the other variants'
            end
    end as left_out_because
from intermediate.int_ranked_options
where model = $model and context_tokens = $context and batch_size = $batch
"""

_SUITABLE = """
select row_number() over (order by preference) as place, *
from candidates
where left_out_because is null and is_cheapest_of_card
order by place
"""


def recommend(connection: duckdb.DuckDBPyConnection, question: Question) -> Answer:
    """Answer from the marts: each card and variant once, by its cheapest offer.

    The ranking is that of `int_ranked_options`: measured quality first, then the cost per token.
    Raises `InputError` for a model without options, or a context or batch beyond the serving grid.
    """
    point = _covering_point(connection, question)
    connection.execute(
        _CANDIDATES,
        {
            "model": question.model,
            "context": point.context,
            "batch": point.batch,
            "hourly": question.max_hourly_usd,
            "budget": question.budget_usd,
            "speed": question.min_tokens_per_s,
            "loss": question.max_quality_loss,
        },
    ).fetchall()
    cursor = connection.execute(_SUITABLE)
    columns = [str(column[0]) for column in cursor.description or []]
    options = [dict(zip(columns, row, strict=True)) for row in cursor.fetchall()]
    left_out = connection.execute(
        "select left_out_because, count(*) from candidates where left_out_because is not null "
        "group by all order by 2 desc, 1"
    ).fetchall()
    return Answer(
        question=question,
        context=point.context,
        batch=point.batch,
        suitable=len(options),
        recommendations=[
            Recommendation.model_validate(
                {**option, "reason": _reason(option, len(options), question.max_quality_loss)}
            )
            for option in options[: question.limit]
        ],
        left_out={str(reason): int(number) for reason, number in left_out},
    )


def _reason(option: Mapping[str, Any], suitable: int, max_quality_loss: float | None) -> str:
    """The option's place and figures in words, as in the mart `recommendations`."""
    reason = f"Number {option['place']} of {suitable} suitable options: {option['explanation']}"
    low, high = option["quality_loss_low"], option["quality_loss_high"]
    if max_quality_loss is None or low is None or not low <= max_quality_loss < high:
        return reason
    return f"{reason} The limit of {max_quality_loss * 100:.4g}% on its quality loss is within its error."


def _covering_point(connection: duckdb.DuckDBPyConnection, question: Question) -> _Point:
    """The smallest point of the grid whose context and batch are at least those of the question."""
    known = connection.execute(
        "select distinct model, context_tokens, batch_size from marts.deployment_options"
    ).fetchall()
    points = [_Point(context, batch) for model, context, batch in known if model == question.model]
    if not points:
        models = sorted({str(model) for model, _, _ in known})
        raise InputError(
            f"The marts have no options for the model {question.model!r}.",
            f"They have {', '.join(models)}."
            if models
            else "They have no models or no offers yet.",
            "Name one of these models, or add this one to the model list and materialize its artifacts.",
        )
    covering = [
        point
        for point in points
        if point.context >= question.context and point.batch >= question.batch
    ]
    if not covering:
        raise InputError(
            f"The marts do not cover {question.context} tokens at batch {question.batch}.",
            f"For {question.model} they go up to {max(p.context for p in points)} tokens (never "
            f"beyond the model's own context) and to batch {max(p.batch for p in points)}.",
            "Choose less, or add the point to `data/serving_grid.yaml` and refresh the marts.",
        )
    return min(covering)
