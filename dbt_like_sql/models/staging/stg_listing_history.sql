-- Offers with a price at the times when something changed, one row an offer and time.
select
    recorded_at,
    offer_id,
    canonical_name as gpu,
    gpu_count,
    price_kind,
    seller,
    title,
    price_usd,
    price_per_gpu_usd
from {{ source('raw', 'listing_history') }}
where price_usd is not null
qualify row_number() over (partition by recorded_at, offer_id order by price_usd) = 1
