-- Every benchmark record, oldest first, beside the previous record of the same cell under the same
-- conditions.
with compared as (
    select
        record_id,
        model,
        variant,
        batch_size,
        artifact_id,
        processor,
        host_id,
        threads,
        prompt_tokens,
        generated_tokens,
        measured_at,
        p50_ms,
        p95_ms,
        decode_tokens_per_s,
        prefill_tokens_per_s,
        peak_rss_bytes,
        contended,
        library_versions,
        cast(row_number() over cell as integer) as run_number,
        lag(p50_ms) over cell as previous_p50_ms,
        lag(decode_tokens_per_s) over cell as previous_decode_tokens_per_s
    from {{ ref('stg_benchmark_runs') }}
    window
        cell as (
            partition by
                model,
                variant,
                batch_size,
                backend,
                {{ run_conditions() }}
            order by measured_at, record_id
        )
)

select
    *,
    p50_ms / previous_p50_ms - 1 as p50_change,
    decode_tokens_per_s / nullif(previous_decode_tokens_per_s, 0) - 1 as decode_change
from compared
order by measured_at, record_id
