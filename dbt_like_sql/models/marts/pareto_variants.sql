-- One row per model, variant and conditions of its runs: size, decoding speed and quality loss, and
-- which variants dominate it under the same conditions (machine, processor, device, threads, lengths
-- of prompt and generation): at least as good in all three and better in one. Speed is the newest
-- measurement at batch 1; all losses of a model are on one text. Where a figure is missing, dominance
-- is unknown and the flag is null.
with figures as (
    select
        summary.model,
        summary.variant,
        {{ run_conditions('summary') }},
        summary.conditions_recency,
        summary.size_gb,
        summary.bits_per_weight,
        summary.decode_tokens_per_s_batch_1 as decode_tokens_per_s,
        quality.quality_loss,
        quality.quality_loss_low,
        quality.quality_loss_high,
        quality.quality_basis,
        quality.unmeasured_because,
        quality.top1_agreement,
        summary.any_contended
    from {{ ref('variant_summary') }} as summary
    inner join {{ ref('variant_quality') }} as quality
        on summary.model = quality.model and summary.variant = quality.variant
),

dominated as (
    select
        mine.model,
        mine.variant,
        {{ run_conditions('mine') }},
        string_agg(other.variant, ', ' order by other.variant) as dominated_by
    from figures as mine
    inner join figures as other
        on
            mine.model = other.model
            and mine.variant <> other.variant
            and {{ equal_run_conditions('mine', 'other') }}
            and other.size_gb <= mine.size_gb
            and other.decode_tokens_per_s >= mine.decode_tokens_per_s
            and other.quality_loss <= mine.quality_loss
            and (
                other.size_gb < mine.size_gb
                or other.decode_tokens_per_s > mine.decode_tokens_per_s
                or other.quality_loss < mine.quality_loss
            )
    group by mine.model, mine.variant, {{ run_conditions('mine') }}
)

select
    figures.*,
    case
        when figures.decode_tokens_per_s is not null and figures.quality_loss is not null
            then dominated.variant is null
    end as is_pareto,
    dominated.dominated_by
from figures
left join dominated
    on
        figures.model = dominated.model
        and figures.variant = dominated.variant
        and {{ equal_run_conditions('figures', 'dominated') }}
