-- Priced offers at every time at which an offer or a price changed; one row per offer and time.
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
