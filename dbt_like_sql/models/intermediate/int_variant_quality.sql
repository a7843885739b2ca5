-- One row per model and variant: the quality of the artifact that the variant runs now, on the text
-- that all variants of the model are compared on.
with elsewhere as (
    select
        model,
        variant,
        artifact_id,
        {{ text_description('text', 'windows', 'context_tokens') }} as text_description
    from {{ ref('stg_variant_quality') }}
    where kind = 'perplexity'
    qualify row_number() over (
        partition by model, variant, artifact_id order by {{ newest_first('measured_at') }}
    ) = 1
),

kv_cache as (
    select *
    from {{ ref('int_kv_cache_quality') }}
    qualify row_number() over (partition by model, variant order by context_tokens desc) = 1
)

select
    variants.model,
    variants.variant,
    variants.artifact_id,
    variants.is_baseline,
    quality.perplexity,
    quality.perplexity_standard_error,
    case when variants.is_baseline then 1.0 else quality.perplexity_ratio end as perplexity_ratio,
    case when variants.is_baseline then 1.0 else quality.perplexity_ratio_low end
        as perplexity_ratio_low,
    case when variants.is_baseline then 1.0 else quality.perplexity_ratio_high end
        as perplexity_ratio_high,
    quality.kl_divergence,
    quality.kl_divergence_low,
    quality.kl_divergence_high,
    quality.kl_divergence_p99,
    quality.kl_divergence_p99_low,
    quality.kl_divergence_p99_high,
    quality.top1_agreement,
    quality.text,
    quality.text_sha256,
    quality.windows as quality_windows,
    quality.context_tokens as quality_context_tokens,
    quality.scored_tokens,
    case
        when variants.is_baseline or quality.perplexity_ratio is not null then null
        when quality.model is not null then 'its quality was measured without a baseline'
        when elsewhere.model is not null
            then concat(
                'its quality was measured on ',
                elsewhere.text_description,
                ', that of the others on ',
                texts.description
            )
        else 'its quality has not been measured'
    end as unmeasured_because,
    kv_cache.context_tokens as kv_cache_context_tokens,
    kv_cache.perplexity_ratio - 1 as kv_cache_loss,
    kv_cache.perplexity_ratio_low - 1 as kv_cache_loss_low,
    kv_cache.perplexity_ratio_high - 1 as kv_cache_loss_high,
    quality.measured_at as quality_measured_at,
    obedience.obedience_pass_rate,
    obedience.obedience_pass_rate_low,
    obedience.obedience_pass_rate_high,
    obedience.obedience_prompts,
    obedience.measured_at as obedience_measured_at
from {{ ref('int_variant_artifacts') }} as variants
left join {{ ref('int_quality_texts') }} as texts
    on variants.model = texts.model
left join {{ ref('stg_variant_quality') }} as quality
    on
        variants.model = quality.model
        and variants.variant = quality.variant
        and variants.artifact_id = quality.artifact_id
        and quality.kind = 'perplexity'
        and texts.text_sha256 is not distinct from quality.text_sha256
        and texts.windows is not distinct from quality.windows
        and texts.context_tokens is not distinct from quality.context_tokens
left join elsewhere
    on
        variants.model = elsewhere.model
        and variants.variant = elsewhere.variant
        and variants.artifact_id = elsewhere.artifact_id
left join kv_cache
    on variants.model = kv_cache.model and variants.variant = kv_cache.variant
left join {{ ref('stg_variant_quality') }} as obedience
    on
        variants.model = obedience.model
        and variants.variant = obedience.variant
        and variants.artifact_id = obedience.artifact_id
        and obedience.kind = 'obedience'
