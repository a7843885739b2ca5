-- Every benchmark record once, with its rank among the records of its cell (1 is the newest).
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
    coalesce(gpu_name, cpu_name) as processor,
    threads,
    warmups,
    runs,
    prompt_tokens,
    generated_tokens,
    p50_ms,
    p95_ms,
    prefill_tokens_per_s,
    decode_tokens_per_s,
    load_time_ms,
    peak_rss_bytes,
    peak_vram_bytes,
    kv_cache_bytes,
    obedience_pass_rate,
    perplexity,
    perplexity_ratio,
    contended,
    "timestamp" as measured_at,
    row_number() over (
        partition by model, variant, batch_size order by "timestamp" desc, record_id
    ) as recency
from {{ source('raw', 'benchmark_runs') }}
qualify row_number() over (partition by record_id order by "timestamp" desc) = 1
