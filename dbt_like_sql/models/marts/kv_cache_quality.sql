-- One row per model, variant and context: what the variant's KV cache types alone cost, against the
-- same weights with an F16 cache on the same tokens. Only tokens near the end of a context are scored,
-- because the loss grows with the number of tokens in the cache.
select
    model,
    variant,
    artifact_id,
    cache_type_k,
    cache_type_v,
    context_tokens,
    text,
    text_sha256,
    windows,
    scored_tokens,
    f16_cache_perplexity,
    perplexity,
    perplexity_standard_error,
    perplexity_ratio,
    perplexity_ratio_low,
    perplexity_ratio_high,
    kl_divergence,
    kl_divergence_low,
    kl_divergence_high,
    kl_divergence_p99,
    kl_divergence_p99_low,
    kl_divergence_p99_high,
    top1_agreement,
    measured_at
from {{ ref('int_kv_cache_quality') }}
order by model, variant, context_tokens
