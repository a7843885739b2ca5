-- The ranking of deployment options, in one place; the mart `recommendations` and the command
-- `recommend` filter it. A card competes with its cheapest offer, and options whose quality was
-- measured come first. Limits on price, speed or quality loss can be applied afterwards: speed and
-- quality are equal for all offers of a card, and a limit on the price keeps the cheapest longest.
select
    *,
    coalesce(fits and usd_per_million_tokens is not null, false)
    and row_number() over (
        partition by
            model,
            variant,
            context_tokens,
            batch_size,
            price_kind,
            gpu,
            gpu_count,
            fits and usd_per_million_tokens is not null
        order by price_usd, row_id
    ) = 1 as is_cheapest_of_card,
    row_number() over (
        partition by model, context_tokens, batch_size
        order by quality_basis = 'unmeasured', usd_per_million_tokens, variant, row_id
    ) as preference
from {{ ref('deployment_options') }}
