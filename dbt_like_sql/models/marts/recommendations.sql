-- For every question (model, context, batch, rent or buy) the options with the cheapest tokens, each
-- card and variant once by its cheapest offer, with the reason in words. Variants whose quality was
-- measured go before those whose quality is not known.
with candidates as (
    select *
    from {{ ref('deployment_options') }}
    where
        fits
        and usd_per_million_tokens is not null
        and decode_tokens_per_s_per_sequence
        >= {{ var('recommended_tokens_per_s_per_sequence') }}
        and coalesce(quality_loss <= {{ var('recommended_quality_loss') }}, true)
),

cheapest as (
    select *
    from candidates
    qualify row_number() over (
        partition by model, variant, context_tokens, batch_size, price_kind, gpu, gpu_count
        order by price_usd, row_id
    ) = 1
),

ranked as (
    select
        *,
        count(*) over (
            partition by model, context_tokens, batch_size, price_kind
        ) as options_compared,
        cast(
            row_number() over (
                partition by model, context_tokens, batch_size, price_kind
                order by quality_basis = 'unmeasured', usd_per_million_tokens, variant, row_id
            ) as integer
        ) as place
    from cheapest
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
    copies,
    decode_tokens_per_s,
    decode_tokens_per_s_low,
    decode_tokens_per_s_high,
    decode_tokens_per_s_per_sequence,
    speed_basis,
    calibrated_on,
    usd_per_million_tokens,
    quality_loss,
    quality_basis,
    printf('Number %d of %d suitable options: ', place, options_compared) || explanation as reason
from ranked
where place <= {{ var('recommendations_per_question') }}
order by model, context_tokens, batch_size, price_kind, place
