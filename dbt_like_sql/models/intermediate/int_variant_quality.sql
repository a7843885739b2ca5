-- One row per model and variant: the quality of the artifact that the variant runs now.
select
    variants.model,
    variants.variant,
    variants.artifact_id,
    variants.is_baseline,
    quality.perplexity,
    quality.perplexity_standard_error,
    case when variants.is_baseline then 1.0 else quality.perplexity_ratio end as perplexity_ratio,
    quality.kl_divergence,
    quality.kl_divergence_p99,
    quality.top1_agreement,
    quality.text,
    quality.scored_tokens,
    quality.measured_at as quality_measured_at,
    obedience.obedience_pass_rate,
    obedience.obedience_pass_rate_low,
    obedience.obedience_pass_rate_high,
    obedience.obedience_prompts,
    obedience.measured_at as obedience_measured_at
from {{ ref('int_variant_artifacts') }} as variants
left join {{ ref('stg_variant_quality') }} as quality
    on
        variants.model = quality.model
        and variants.variant = quality.variant
        and variants.artifact_id = quality.artifact_id
        and quality.kind = 'perplexity'
left join {{ ref('stg_variant_quality') }} as obedience
    on
        variants.model = obedience.model
        and variants.variant = obedience.variant
        and variants.artifact_id = obedience.artifact_id
        and obedience.kind = 'obedience'
