-- Speeds that were measured on a GPU at a point of the serving grid: uncontended runs of the same
-- variant and batch size on the same GPU, at half to twice the context (prefill: the prompt). They
-- replace the estimate. The interval of decoding reaches from the slowest steps to the fastest run.
with runs_at_points as (
    select
        points.processor as gpu,
        needs.model,
        needs.variant,
        needs.context_tokens,
        needs.batch_size,
        case
            when needs.context_tokens between points.context_tokens / 2 and points.context_tokens * 2
                then points.decode_tokens_per_s
        end as decode_tokens_per_s,
        coalesce(points.slowest_share, 1) as slowest_share,
        case
            when needs.prompt_tokens between points.prompt_tokens / 2 and points.prompt_tokens * 2
                then points.prefill_tokens_per_s
        end as prefill_tokens_per_s
    from {{ ref('int_speed_points') }} as points
    inner join {{ ref('stg_serving_needs') }} as needs
        on
            points.model = needs.model
            and points.variant = needs.variant
            and points.backend = needs.backend
            and points.batch_size = needs.batch_size
            and needs.point_source = 'grid'
    where points.processor_kind = 'gpu'
)

select
    gpu,
    model,
    variant,
    context_tokens,
    batch_size,
    median(decode_tokens_per_s) as decode_tokens_per_s,
    min(decode_tokens_per_s * slowest_share) as decode_tokens_per_s_low,
    max(decode_tokens_per_s) as decode_tokens_per_s_high,
    cast(count(decode_tokens_per_s) as integer) as decode_runs,
    median(prefill_tokens_per_s) as prefill_tokens_per_s,
    min(prefill_tokens_per_s) as prefill_tokens_per_s_low,
    max(prefill_tokens_per_s) as prefill_tokens_per_s_high,
    cast(count(prefill_tokens_per_s) as integer) as prefill_runs
from runs_at_points
where decode_tokens_per_s is not null or prefill_tokens_per_s is not null
group by gpu, model, variant, context_tokens, batch_size
