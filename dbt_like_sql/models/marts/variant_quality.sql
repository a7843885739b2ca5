-- One row per model and variant: the quality that the variant loses relative to F16, on the text that
-- all variants of the model are compared on. The loss of the baseline is 0 by definition; where
-- nothing was measured on that text the loss is null.
select
    model,
    variant,
    artifact_id,
    case
        when is_baseline then 'baseline'
        when perplexity_ratio is not null then 'measured'
        else 'unmeasured'
    end as quality_basis,
    perplexity,
    perplexity_standard_error,
    perplexity_ratio,
    perplexity_ratio_low,
    perplexity_ratio_high,
    perplexity_ratio - 1 as quality_loss,
    perplexity_ratio_low - 1 as quality_loss_low,
    perplexity_ratio_high - 1 as quality_loss_high,
    unmeasured_because,
    kl_divergence,
    kl_divergence_low,
    kl_divergence_high,
    kl_divergence_p99,
    kl_divergence_p99_low,
    kl_divergence_p99_high,
    top1_agreement,
    text,
    text_sha256,
    quality_windows,
    quality_context_tokens,
    scored_tokens,
    kv_cache_context_tokens,
    kv_cache_loss,
    kv_cache_loss_low,
    kv_cache_loss_high,
    quality_measured_at,
    obedience_pass_rate,
    obedience_pass_rate_low,
    obedience_pass_rate_high,
    obedience_prompts,
    obedience_measured_at
from {{ ref('int_variant_quality') }}
