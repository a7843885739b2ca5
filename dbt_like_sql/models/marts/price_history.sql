-- Prices of each card over time: one row per card, kind of price and time at which any price
-- changed.
with snapshots as (
    select
        gpu,
        price_kind,
        recorded_at,
        cast(count(*) as integer) as offers,
        min(price_per_gpu_usd) as lowest_per_gpu_usd,
        median(price_per_gpu_usd) as median_per_gpu_usd,
        max(price_per_gpu_usd) as highest_per_gpu_usd
    from {{ ref('stg_listing_history') }}
    group by gpu, price_kind, recorded_at
)

select
    *,
    lag(lowest_per_gpu_usd) over card as previous_lowest_per_gpu_usd,
    lowest_per_gpu_usd / lag(lowest_per_gpu_usd) over card - 1 as lowest_change,
    recorded_at = max(recorded_at) over () as is_newest
from snapshots
window card as (partition by gpu, price_kind order by recorded_at)
order by gpu, price_kind, recorded_at
