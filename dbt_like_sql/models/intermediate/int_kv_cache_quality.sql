-- One row per model, variant and context at which the variant's KV cache types were measured, with the
-- artifact that it runs now. All variants of a model have the same text at a context: the one on which
-- most were measured, of equals the one measured last.
with current_measurements as (
    select
        variants.model,
        variants.variant,
        variants.artifact_id,
        variants.cache_type_k,
        variants.cache_type_v,
        quality.context_tokens,
        quality.measured_at,
        quality.text,
        quality.text_sha256,
        quality.windows,
        quality.scored_tokens,
        quality.f16_cache_perplexity,
        quality.perplexity,
        quality.perplexity_standard_error,
        quality.perplexity_ratio,
        quality.perplexity_ratio_low,
        quality.perplexity_ratio_high,
        quality.kl_divergence,
        quality.kl_divergence_low,
        quality.kl_divergence_high,
        quality.kl_divergence_p99,
        quality.kl_divergence_p99_low,
        quality.kl_divergence_p99_high,
        quality.top1_agreement
    from {{ ref('int_variant_artifacts') }} as variants
    inner join {{ ref('stg_kv_cache_quality') }} as quality
        on
            variants.model = quality.model
            and variants.variant = quality.variant
            and variants.artifact_id = quality.artifact_id
            and variants.cache_type_k = quality.cache_type_k
            and variants.cache_type_v = quality.cache_type_v
),

texts as (
    select
        model,
        context_tokens,
        text_sha256,
        windows
    from current_measurements
    group by model, context_tokens, text_sha256, windows
    qualify row_number() over (
        partition by model, context_tokens
        order by
            count(*) desc,
            max(measured_at) filter (
                where measured_at <= current_timestamp + interval 1 day
            ) desc nulls last,
            text_sha256,
            windows
    ) = 1
)

select current_measurements.*
from current_measurements
inner join texts
    on
        current_measurements.model = texts.model
        and current_measurements.context_tokens = texts.context_tokens
        and current_measurements.text_sha256 = texts.text_sha256
        and current_measurements.windows = texts.windows
