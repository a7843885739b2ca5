-- The newest measurement of each artifact's KV cache types at each context and on each text.
select
    model,
    variant,
    artifact_id,
    cache_type_k,
    cache_type_v,
    context_tokens,
    measured_at,
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
    top1_agreement
from {{ source('raw', 'kv_cache_quality') }}
qualify row_number() over (
    partition by
        model,
        variant,
        artifact_id,
        cache_type_k,
        cache_type_v,
        context_tokens,
        text_sha256,
        windows
    order by {{ newest_first('measured_at') }}
) = 1
