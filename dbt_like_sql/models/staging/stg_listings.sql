-- Offers whose card was recognized, one row per offer.
select
    row_id,
    source_file,
    seller,
    title,
    url,
    canonical_name,
    match_type,
    match_score,
    gpu_count,
    vram_gb,
    memory_bandwidth_gb_s,
    tdp_w,
    price_kind,
    price_usd,
    price_per_gpu_usd,
    price_per_gb_usd,
    collapsed_duplicates,
    quantization_capacity
from {{ source('raw', 'enriched_listings') }}
