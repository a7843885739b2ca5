-- One row a model and variant: how much quality the variant loses against F16. The baseline loses
-- nothing by definition; where nothing was measured the loss is null.
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
    obedience_prompts,
    obedience_measured_at
from {{ ref('int_variant_quality') }}
