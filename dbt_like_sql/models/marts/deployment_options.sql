-- Listing x variant: does a copy of the variant fit a GPU of the offer, how many copies does the
-- whole offer hold, and what does one of them cost. A copy is the weights and the KV cache of the
-- largest batch that was measured; every GPU keeps `overhead_gb` for itself. A copy never spans
-- GPUs.
with variants as (
    select
        *,
        size_gb + coalesce(kv_cache_bytes, 0) / 1e9 as copy_gb
    from {{ ref('variant_summary') }}
),

options as (
    select
        listings.row_id,
        listings.canonical_name as gpu,
        listings.gpu_count,
        listings.vram_gb,
        listings.seller,
        listings.price_kind,
        listings.price_usd,
        variants.model,
        variants.variant,
        variants.level,
        variants.copy_gb,
        cast(
            greatest(floor((listings.vram_gb - {{ var('overhead_gb') }}) / variants.copy_gb), 0)
            as integer
        ) as copies_per_gpu
    from {{ ref('stg_listings') }} as listings
    cross join variants
)

select
    * exclude (copies_per_gpu),
    copies_per_gpu >= 1 as fits,
    copies_per_gpu,
    copies_per_gpu * gpu_count as copies,
    case when copies_per_gpu >= 1 then price_usd / (copies_per_gpu * gpu_count) end as usd_per_slot
from options
order by fits desc, price_kind, usd_per_slot nulls last, row_id, variant
