-- Every benchmark record once, with its rank among the records of its cell under its conditions (1 is
-- the newest), and the rank of these conditions among those of its model by their newest record. The
-- processor of an endpoint is its address. An older record without a host id is that of the only
-- machine known to have its processor, if there is one.
with recorded as (
    select
        *,
        coalesce(
            gpu_name, cpu_name, case when backend = 'endpoint' then artifact_id end, 'unknown'
        ) as processor
    from {{ source('raw', 'benchmark_runs') }}
    qualify row_number() over (partition by record_id order by {{ newest_first('"timestamp"') }}) = 1
),

attributed as (
    select
        * replace (
            coalesce(
                host_id,
                case
                    when min(host_id) over same_processor = max(host_id) over same_processor
                        then min(host_id) over same_processor
                end
            ) as host_id
        )
    from recorded
    window same_processor as (partition by processor)
),

dated as (
    select
        *,
        max("timestamp") filter ("timestamp" <= current_timestamp + interval 1 day) over (
            partition by model, {{ run_conditions() }}
        ) as conditions_measured_at
    from attributed
)

select
    record_id,
    model,
    variant,
    batch_size,
    artifact_id,
    format,
    upper(level) as level,
    cache_type_k,
    cache_type_v,
    backend,
    device,
    processor,
    host_id,
    cpu_name,
    gpu_name,
    gpu,
    threads,
    warmups,
    runs,
    prompt_tokens,
    generated_tokens,
    p50_ms as p50,
    p50_ms,
    p95_ms as p95,
    p95_ms,
    p95_flagged,
    ttft_p50_ms,
    per_token_p50_ms,
    per_token_p95_ms,
    prefill_tokens_per_s,
    decode_tokens_per_s as token_throughput,
    decode_tokens_per_s,
    decode_tokens_per_s_per_sequence,
    load_time_ms,
    command_duration_ms,
    peak_rss_bytes as peak_rss,
    peak_rss_bytes,
    peak_vram_bytes,
    kv_cache_bytes,
    obedience_pass_rate,
    obedience_pass_rate_low,
    obedience_pass_rate_high,
    obedience_prompts,
    perplexity,
    perplexity_standard_error,
    perplexity_ratio,
    perplexity_ratio_low,
    perplexity_ratio_high,
    quality_text,
    contended,
    contended_reasons,
    library_versions,
    "timestamp" as measured_at,
    row_number() over (
        partition by model, variant, batch_size, {{ run_conditions() }}
        order by {{ newest_first('"timestamp"') }}, record_id
    ) as recency,
    dense_rank() over (
        partition by model order by conditions_measured_at desc nulls last, {{ run_conditions() }}
    ) as conditions_recency
from dated
