-- One row per model, variant and conditions of its runs (machine, processor, device, threads, and the
-- lengths of prompt and generation): its size, and the newest measurement at each batch size under
-- these conditions. A variant that was never measured has one row without conditions.
with latest as (
    select * from {{ ref('stg_benchmark_runs') }} where recency = 1
),

cells as (
    select
        model,
        variant,
        {{ run_conditions() }},
        any_value(conditions_recency) as conditions_recency,
        cast(count(*) as integer) as measured_cells,
        max(decode_tokens_per_s) as best_decode_tokens_per_s,
        max(case when batch_size = 1 then p50_ms end) as p50_ms_batch_1,
        max(case when batch_size = 4 then p50_ms end) as p50_ms_batch_4,
        max(case when batch_size = 8 then p50_ms end) as p50_ms_batch_8,
        max(case when batch_size = 1 then p95_ms end) as p95_ms_batch_1,
        max(case when batch_size = 1 then decode_tokens_per_s end) as decode_tokens_per_s_batch_1,
        max(case when batch_size = 4 then decode_tokens_per_s end) as decode_tokens_per_s_batch_4,
        max(case when batch_size = 8 then decode_tokens_per_s end) as decode_tokens_per_s_batch_8,
        max(load_time_ms) as load_time_ms,
        max(peak_rss_bytes) as peak_rss_bytes,
        max(kv_cache_bytes) as kv_cache_bytes,
        bool_or(contended) as any_contended,
        max(measured_at) as measured_at
    from latest
    group by model, variant, {{ run_conditions() }}
)

select
    artifacts.model,
    artifacts.variant,
    artifacts.format,
    artifacts.level,
    artifacts.cache_type_k,
    artifacts.cache_type_v,
    artifacts.artifact_id,
    artifacts.size_gb,
    artifacts.bits_per_weight,
    artifacts.size_ratio_to_f16,
    cells.* exclude (model, variant)
from {{ ref('int_variant_artifacts') }} as artifacts
left join cells
    on artifacts.model = cells.model and artifacts.variant = cells.variant
