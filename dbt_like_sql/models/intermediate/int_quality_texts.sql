-- One row per model: the text that its variants are compared on. Perplexities on different texts, or
-- on other windows of one text, do not compare, so all come from one: the text on which most variants
-- besides the baseline were measured, of equals the one measured last.
with measured as (
    select
        quality.model,
        quality.text_sha256,
        quality.windows,
        quality.context_tokens,
        max(quality.text) as text,
        cast(count(*) filter (where not variants.is_baseline) as integer) as variants_measured,
        max(quality.measured_at) filter (
            where quality.measured_at <= current_timestamp + interval 1 day
        ) as measured_at
    from {{ ref('int_variant_artifacts') }} as variants
    inner join {{ ref('stg_variant_quality') }} as quality
        on
            variants.model = quality.model
            and variants.variant = quality.variant
            and variants.artifact_id = quality.artifact_id
            and quality.kind = 'perplexity'
    group by quality.model, quality.text_sha256, quality.windows, quality.context_tokens
)

select
    *,
    {{ text_description('text', 'windows', 'context_tokens') }} as description
from measured
qualify row_number() over (
    partition by model
    order by variants_measured desc, measured_at desc nulls last, text_sha256, windows, context_tokens
) = 1
