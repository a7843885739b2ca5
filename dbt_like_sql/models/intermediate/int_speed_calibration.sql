-- Efficiency (the share of the roofline that measured runs reach) with its spread, by scope: how
-- close the runs are to the estimate that they calibrate. Closest first: 1 the same cell on the
-- same GPU; 2 the same backend on the same GPU; 3 the same backend on any GPU; 4 the same backend
-- on a CPU, the spread widened by the assumption and capped at 1, since data sheets state peaks
-- that are never exceeded; 5 the assumption alone.
{% set decode, prefill = var('prior_decode_efficiency'), var('prior_prefill_efficiency') %}
with points as (
    select * from {{ ref('int_speed_points') }}
),

cells as (
    select
        1 as scope,
        'runs of this variant and batch size on this GPU' as calibrated_on,
        backend,
        processor,
        model,
        variant,
        batch_size,
        count(*) as runs,
        median(decode_efficiency) as decode_middle,
        min(decode_efficiency * coalesce(slowest_share, 1)) as decode_low,
        max(decode_efficiency) as decode_high,
        median(prefill_efficiency) as prefill_middle,
        min(prefill_efficiency) as prefill_low,
        max(prefill_efficiency) as prefill_high,
        max(context_tokens) as run_context_tokens,
        median(decode_tokens_per_s) as run_decode_tokens_per_s,
        min(decode_tokens_per_s * coalesce(slowest_share, 1)) as run_decode_tokens_per_s_low,
        max(decode_tokens_per_s) as run_decode_tokens_per_s_high
    from points
    where processor_kind = 'gpu'
    group by backend, processor, model, variant, batch_size
),

{% set spread %}
        count(*) as runs,
        median(decode_efficiency) as decode_middle,
        quantile_cont(decode_efficiency, 0.1) as decode_low,
        quantile_cont(decode_efficiency, 0.9) as decode_high,
        median(prefill_efficiency) as prefill_middle,
        quantile_cont(prefill_efficiency, 0.1) as prefill_low,
        quantile_cont(prefill_efficiency, 0.9) as prefill_high
{% endset %}
same_gpu as (
    select
        2 as scope,
        'runs of this backend on this GPU' as calibrated_on,
        backend,
        processor,
        {{ spread }}
    from points
    where processor_kind = 'gpu'
    group by backend, processor
),

same_kind as (
    select
        3 as scope,
        'runs of this backend on other GPUs' as calibrated_on,
        backend,
        {{ spread }}
    from points
    where processor_kind = 'gpu'
    group by backend
),

same_backend as (
    select
        4 as scope,
        'runs of this backend on a CPU, and an assumption for GPUs' as calibrated_on,
        backend,
        {{ spread }}
    from points
    where processor_kind = 'cpu'
    group by backend
),

widened as (
    select
        * replace (
            least(decode_low, {{ decode[0] }}) as decode_low,
            least(decode_middle, 1) as decode_middle,
            least(greatest(decode_high, {{ decode[2] }}), 1) as decode_high,
            least(prefill_low, {{ prefill[0] }}) as prefill_low,
            least(prefill_middle, 1) as prefill_middle,
            least(greatest(prefill_high, {{ prefill[2] }}), 1) as prefill_high
        )
    from same_backend
),

assumption as (
    select
        5 as scope,
        'an assumption, since too few runs were measured' as calibrated_on,
        0 as runs,
        {{ decode[1] }} as decode_middle,
        {{ decode[0] }} as decode_low,
        {{ decode[2] }} as decode_high,
        {{ prefill[1] }} as prefill_middle,
        {{ prefill[0] }} as prefill_low,
        {{ prefill[2] }} as prefill_high
),

every_scope as (
    select * from cells
    union all by name
    select * from same_gpu where runs >= {{ var('minimum_calibration_runs') }}
    union all by name
    select * from same_kind where runs >= {{ var('minimum_calibration_runs') }}
    union all by name
    select * from widened where runs >= {{ var('minimum_calibration_runs') }}
    union all by name
    select * from assumption
)

-- Without a known peak compute, prefill cannot be calibrated; the assumption stands in.
select
    * replace (
        coalesce(prefill_middle, {{ prefill[1] }}) as prefill_middle,
        coalesce(prefill_low, {{ prefill[0] }}) as prefill_low,
        coalesce(prefill_high, {{ prefill[2] }}) as prefill_high
    )
from every_scope
