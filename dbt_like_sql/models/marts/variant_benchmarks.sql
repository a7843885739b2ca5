-- The newest record of every cell under its conditions: machine, processor, device, threads, and the
-- lengths of prompt and generation.
select
    runs.model,
    runs.variant,
    runs.batch_size,
    runs.backend,
    runs.device,
    runs.processor,
    runs.host_id,
    runs.threads,
    runs.prompt_tokens,
    runs.generated_tokens,
    runs.conditions_recency,
    runs.warmups,
    runs.runs,
    runs.record_id,
    runs.artifact_id,
    coalesce(runs.artifact_id = artifacts.artifact_id, false) as artifact_is_current,
    runs.p50,
    runs.p50_ms,
    runs.p95,
    runs.p95_ms,
    runs.p95_flagged,
    runs.ttft_p50_ms,
    runs.per_token_p50_ms,
    runs.per_token_p95_ms,
    runs.prefill_tokens_per_s,
    runs.token_throughput,
    runs.decode_tokens_per_s,
    runs.decode_tokens_per_s_per_sequence,
    runs.load_time_ms,
    runs.command_duration_ms,
    runs.peak_rss,
    runs.peak_rss_bytes,
    runs.peak_vram_bytes,
    runs.kv_cache_bytes,
    runs.obedience_pass_rate,
    runs.obedience_pass_rate_low,
    runs.obedience_pass_rate_high,
    runs.obedience_prompts,
    runs.contended,
    runs.contended_reasons,
    points.decode_roofline_tokens_per_s,
    points.decode_efficiency,
    points.prefill_efficiency,
    runs.library_versions,
    runs.measured_at
from {{ ref('stg_benchmark_runs') }} as runs
left join {{ ref('int_variant_artifacts') }} as artifacts
    on runs.model = artifacts.model and runs.variant = artifacts.variant
left join {{ ref('int_speed_points') }} as points
    on runs.record_id = points.record_id
qualify row_number() over (
    partition by
        runs.model,
        runs.variant,
        runs.batch_size,
        runs.backend,
        {{ run_conditions('runs') }}
    order by {{ newest_first('runs.measured_at') }}, runs.record_id
) = 1
