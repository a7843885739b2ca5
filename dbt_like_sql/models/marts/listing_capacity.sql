-- One row per offer: how many 4-bit models of each size one of its GPUs holds by the simple rule,
-- and the price per such slot. Keys are suffixed by the bits where enrichment was given several widths.
with capacities as (
    select
        *,
        cast(
            coalesce(quantization_capacity ->> '$."7b_4bit"', quantization_capacity ->> '$."7b"')
            as integer
        ) as capacity_7b,
        cast(
            coalesce(quantization_capacity ->> '$."13b_4bit"', quantization_capacity ->> '$."13b"')
            as integer
        ) as capacity_13b,
        cast(
            coalesce(quantization_capacity ->> '$."70b_4bit"', quantization_capacity ->> '$."70b"')
            as integer
        ) as capacity_70b
    from {{ ref('stg_listings') }}
)

select
    row_id,
    canonical_name as gpu,
    seller,
    title,
    cast(gpu_count as integer) as gpu_count,
    vram_gb,
    memory_bandwidth_gb_s,
    cast(tdp_w as double) as tdp_w,
    price_kind,
    price_usd,
    price_per_gpu_usd,
    price_per_gb_usd,
    capacity_7b,
    capacity_13b,
    capacity_70b,
    price_per_gpu_usd / nullif(capacity_7b, 0) as usd_per_7b_slot,
    price_per_gpu_usd / nullif(capacity_13b, 0) as usd_per_13b_slot,
    price_per_gpu_usd / nullif(capacity_70b, 0) as usd_per_70b_slot
from capacities
