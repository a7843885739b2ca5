-- Listing x variant x context x batch: whether a copy fits on one GPU of the offer, how many copies
-- the whole offer holds, how fast a copy decodes and what its tokens cost. A copy is weights, KV
-- cache and compute buffers, and never spans GPUs; `overhead_gb` of every GPU is not available to
-- copies. Speed and cost assume one copy on each GPU: several copies on one GPU would share its
-- bandwidth.
with options as (
    select
        listings.row_id,
        listings.canonical_name as gpu,
        listings.gpu_count,
        listings.vram_gb,
        listings.tdp_w,
        listings.seller,
        listings.title,
        listings.url,
        listings.price_kind,
        listings.price_usd,
        needs.model,
        needs.variant,
        needs.context_tokens,
        needs.batch_size,
        needs.weights_gb,
        needs.kv_cache_gb,
        needs.copy_gb,
        cast(
            greatest(floor((listings.vram_gb - {{ var('overhead_gb') }}) / needs.copy_gb), 0)
            as integer
        ) as copies_per_gpu
    from {{ ref('stg_listings') }} as listings
    cross join {{ ref('stg_serving_needs') }} as needs
    where needs.point_source = 'grid'
),

timed as (
    select
        options.*,
        artifacts.level,
        options.copies_per_gpu >= 1 as fits,
        options.copies_per_gpu * options.gpu_count as copies,
        {{ hourly_cost_usd('options.price_kind', 'options.price_usd', 'options.tdp_w',
                           'options.gpu_count') }} as hourly_cost_usd,
        speed.decode_tokens_per_s,
        speed.decode_tokens_per_s_low,
        speed.decode_tokens_per_s_high,
        speed.speed_basis,
        speed.speed_runs,
        speed.prefill_tokens_per_s,
        speed.prefill_tokens_per_s_low,
        speed.prefill_tokens_per_s_high,
        speed.prefill_basis,
        speed.prefill_runs,
        quality.quality_loss,
        quality.quality_basis
    from options
    inner join {{ ref('int_variant_artifacts') }} as artifacts
        on options.model = artifacts.model and options.variant = artifacts.variant
    inner join {{ ref('variant_quality') }} as quality
        on options.model = quality.model and options.variant = quality.variant
    left join {{ ref('expected_speed') }} as speed
        on
            options.gpu = speed.gpu
            and options.model = speed.model
            and options.variant = speed.variant
            and options.context_tokens = speed.context_tokens
            and options.batch_size = speed.batch_size
            and options.copies_per_gpu >= 1
),

priced as (
    select
        row_id,
        gpu,
        cast(gpu_count as integer) as gpu_count,
        vram_gb,
        seller,
        title,
        url,
        price_kind,
        price_usd,
        hourly_cost_usd,
        model,
        variant,
        level,
        context_tokens,
        batch_size,
        weights_gb,
        kv_cache_gb,
        copy_gb,
        fits,
        copies_per_gpu,
        cast(copies as integer) as copies,
        price_usd / nullif(copies, 0) as usd_per_slot,
        decode_tokens_per_s,
        decode_tokens_per_s_low,
        decode_tokens_per_s_high,
        decode_tokens_per_s / batch_size as decode_tokens_per_s_per_sequence,
        speed_basis,
        speed_runs,
        prefill_tokens_per_s,
        prefill_tokens_per_s_low,
        prefill_tokens_per_s_high,
        prefill_basis,
        prefill_runs,
        1e6 * hourly_cost_usd / (3600 * gpu_count * decode_tokens_per_s) as usd_per_million_tokens,
        1e6 * hourly_cost_usd / (3600 * gpu_count * decode_tokens_per_s_high)
            as usd_per_million_tokens_low,
        1e6 * hourly_cost_usd / (3600 * gpu_count * decode_tokens_per_s_low)
            as usd_per_million_tokens_high,
        quality_loss,
        quality_basis
    from timed
)

select
    *,
    case when usd_per_million_tokens is not null then {{ option_explanation() }} end as explanation
from priced
order by model, context_tokens, batch_size, fits desc, price_kind, usd_per_million_tokens
