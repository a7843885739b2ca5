-- For every question (model, context, batch, rent or buy) the options with the cheapest tokens:
-- each card and variant once, by its cheapest offer, with the reason in words. Ranked by
-- `int_ranked_options`; here are the limits on speed and quality loss, and the first places.
with ranked as (
    select
        *,
        count(*) over (
            partition by model, context_tokens, batch_size, price_kind
        ) as options_compared,
        cast(
            row_number() over (
                partition by model, context_tokens, batch_size, price_kind
                order by preference
            ) as integer
        ) as place
    from {{ ref('int_ranked_options') }}
    where
        is_cheapest_of_card
        and decode_tokens_per_s_per_sequence
        >= {{ var('recommended_tokens_per_s_per_sequence') }}
        -- What is over the limit only within its error stays, and says so.
        and coalesce(
            coalesce(quality_loss_low, quality_loss) <= {{ var('recommended_quality_loss') }}, true
        )
)

select
    model,
    context_tokens,
    batch_size,
    price_kind,
    place,
    variant,
    gpu,
    gpu_count,
    row_id,
    seller,
    url,
    price_usd,
    hourly_cost_usd,
    copy_gb,
    gpus_per_copy,
    copies,
    decode_tokens_per_s,
    decode_tokens_per_s_low,
    decode_tokens_per_s_high,
    decode_tokens_per_s_per_sequence,
    speed_basis,
    speed_runs,
    prefill_tokens_per_s,
    prefill_tokens_per_s_low,
    prefill_tokens_per_s_high,
    prefill_basis,
    prefill_runs,
    usd_per_million_tokens,
    quality_loss,
    quality_loss_low,
    quality_loss_high,
    quality_basis,
    unmeasured_because,
    kv_cache_context_tokens,
    kv_cache_loss,
    kv_cache_loss_low,
    kv_cache_loss_high,
    concat(
        printf('Number %d of %d suitable options: ', place, options_compared),
        explanation,
        case
            when
                quality_loss_low <= {{ var('recommended_quality_loss') }}
                and quality_loss_high > {{ var('recommended_quality_loss') }}
                then printf(
                    ' The limit of %.4g%% on its quality loss is within its error.',
                    100 * {{ var('recommended_quality_loss') }}
                )
            else ''
        end
    ) as reason
from ranked
where place <= {{ var('recommendations_per_question') }}
order by model, context_tokens, batch_size, price_kind, place
