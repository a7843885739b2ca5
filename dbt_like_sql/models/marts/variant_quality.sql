-- One row per model and variant: the quality that the variant loses relative to F16. The loss of
-- the baseline is 0 by definition; where nothing was measured the loss is null.
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
    perplexity_ratio - 1 as quality_loss,
    kl_divergence,
    kl_divergence_p99,
    top1_agreement,
    text,
    scored_tokens,
    quality_measured_at,
    obedience_pass_rate,
    obedience_pass_rate_low,
    obedience_pass_rate_high,
    obedience_prompts,
    obedience_measured_at
from {{ ref('int_variant_quality') }}
