-- Listing x variant x context x batch: whether the GPUs of the offer hold a copy, how many copies the
-- whole offer holds, how fast a copy decodes and what its tokens cost. A copy is weights, KV cache and
-- compute buffers; one that exceeds a GPU is split by layers over the fewest that hold it
-- (`stg_placements`). Its stages take turns, so it decodes as fast as on one GPU, less the transfers.
-- Cost assumes one copy on each GPU, or on each group that a copy spans (`busy_copies`): several on one
-- GPU would share its bandwidth.
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
        placements.gpu_memory_gb,
        placements.gpus_per_copy,
        placements.fullest_gpu_gb,
        placements.transfer_s,
        coalesce(placements.copies_per_gpu, 0) as copies_per_gpu,
        coalesce(
            listings.gpu_count * placements.gpus_per_card // placements.gpus_per_copy, 0
        ) as busy_copies
    from {{ ref('stg_listings') }} as listings
    cross join {{ ref('stg_serving_needs') }} as needs
    left join {{ ref('stg_placements') }} as placements
        on
            listings.canonical_name = placements.gpu
            and needs.model = placements.model
            and needs.variant = placements.variant
            and needs.context_tokens = placements.context_tokens
            and needs.batch_size = placements.batch_size
    where needs.point_source = 'grid'
),

timed as (
    select
        options.*,
        artifacts.level,
        options.busy_copies >= 1 as fits,
        options.busy_copies * greatest(options.copies_per_gpu, 1) as copies,
        {{ hourly_cost_usd('options.price_kind', 'options.price_usd', 'options.tdp_w',
                           'options.gpu_count') }} as hourly_cost_usd,
        {{ with_transfers('speed.decode_tokens_per_s') }} as decode_tokens_per_s,
        {{ with_transfers('speed.decode_tokens_per_s_low') }} as decode_tokens_per_s_low,
        {{ with_transfers('speed.decode_tokens_per_s_high') }} as decode_tokens_per_s_high,
        speed.speed_basis,
        speed.speed_runs,
        speed.prefill_tokens_per_s,
        speed.prefill_tokens_per_s_low,
        speed.prefill_tokens_per_s_high,
        speed.prefill_basis,
        speed.prefill_runs,
        quality.quality_loss,
        quality.quality_loss_low,
        quality.quality_loss_high,
        quality.quality_basis,
        quality.unmeasured_because,
        quality.kv_cache_context_tokens,
        quality.kv_cache_loss,
        quality.kv_cache_loss_low,
        quality.kv_cache_loss_high
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
            and options.busy_copies >= 1
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
        gpu_memory_gb,
        gpus_per_copy,
        fullest_gpu_gb,
        copies_per_gpu,
        cast(busy_copies as integer) as busy_copies,
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
        1e6 * hourly_cost_usd / (3600 * busy_copies * decode_tokens_per_s)
            as usd_per_million_tokens,
        1e6 * hourly_cost_usd / (3600 * busy_copies * decode_tokens_per_s_high)
            as usd_per_million_tokens_low,
        1e6 * hourly_cost_usd / (3600 * busy_copies * decode_tokens_per_s_low)
            as usd_per_million_tokens_high,
        quality_loss,
        quality_loss_low,
        quality_loss_high,
        quality_basis,
        unmeasured_because,
        kv_cache_context_tokens,
        kv_cache_loss,
        kv_cache_loss_low,
        kv_cache_loss_high
    from timed
)

select
    *,
    case when usd_per_million_tokens is not null then {{ option_explanation() }} end as explanation
from priced
order by model, context_tokens, batch_size, fits desc, price_kind, usd_per_million_tokens
