-- Every uncontended run beside the roofline of its processor at the same lengths and batch size.
-- Efficiency is the measured throughput divided by the roofline's.
with points as (
    select
        runs.record_id,
        runs.model,
        runs.variant,
        runs.backend,
        runs.batch_size,
        runs.measured_at,
        processors.processor,
        processors.processor_kind,
        needs.context_tokens,
        needs.prompt_tokens,
        runs.decode_tokens_per_s,
        runs.prefill_tokens_per_s,
        least(1.0, runs.per_token_p50_ms / nullif(runs.per_token_p95_ms, 0)) as slowest_share,
        runs.batch_size
        / {{ roofline_seconds('decode') }} as decode_roofline_tokens_per_s,
        case
            when processors.tflops is not null
                then
                    runs.batch_size * runs.prompt_tokens
                    / {{ roofline_seconds('prefill') }}
        end as prefill_roofline_tokens_per_s
    from {{ ref('stg_benchmark_runs') }} as runs
    inner join {{ ref('int_processors') }} as processors
        on
            processors.processor = case when runs.device = 'cpu' then runs.cpu_name else runs.gpu end
            and processors.processor_kind = case when runs.device = 'cpu' then 'cpu' else 'gpu' end
            and coalesce(processors.threads = runs.threads, true)
    {{ join_needs_of_runs() }}
    where
        not runs.contended
        and runs.decode_tokens_per_s > 0
        and processors.memory_bandwidth_gb_s is not null
)

select
    *,
    decode_tokens_per_s / decode_roofline_tokens_per_s as decode_efficiency,
    prefill_tokens_per_s / prefill_roofline_tokens_per_s as prefill_efficiency
from points
