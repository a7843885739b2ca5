-- The memory, bytes and operations that one copy of a variant needs: at the points of the serving
-- grid and at the lengths of measured runs.
select
    model,
    variant,
    backend,
    artifact_id,
    source as point_source,
    context_tokens,
    prompt_tokens,
    context_tokens - prompt_tokens as generated_tokens,
    batch_size,
    (weights_bytes + kv_cache_bytes + compute_bytes) / 1e9 as copy_gb,
    weights_bytes / 1e9 as weights_gb,
    kv_cache_bytes / 1e9 as kv_cache_gb,
    compute_bytes / 1e9 as compute_gb,
    decode_bytes,
    decode_flops,
    prefill_bytes,
    prefill_flops
from {{ source('raw', 'serving_needs') }}
