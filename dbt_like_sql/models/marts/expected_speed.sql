-- GPU x variant x context x batch: throughput of one copy that has a GPU to itself, whether or not
-- it fits. The estimate is the roofline times an efficiency calibrated by measured runs; runs of
-- the same cell on the same GPU, at half to twice the context, replace it.
with rooflines as (
    select
        processors.processor as gpu,
        needs.model,
        needs.variant,
        needs.backend,
        needs.context_tokens,
        needs.batch_size,
        needs.batch_size
        / {{ roofline_seconds('decode') }} as decode_roofline,
        case
            when processors.tflops is not null
                then
                    needs.batch_size * needs.prompt_tokens
                    / {{ roofline_seconds('prefill') }}
        end as prefill_roofline
    from {{ ref('int_processors') }} as processors
    cross join {{ ref('stg_serving_needs') }} as needs
    inner join {{ ref('stg_models') }} as models
        on needs.model = models.model
    where
        processors.processor_kind = 'gpu'
        and processors.memory_bandwidth_gb_s is not null
        and needs.point_source = 'grid'
),

calibrated as (
    select
        rooflines.*,
        calibration.* exclude (backend, processor, model, variant, batch_size),
        coalesce(
            rooflines.context_tokens
            between calibration.run_context_tokens / 2 and calibration.run_context_tokens * 2,
            false
        ) as is_measured
    from rooflines
    inner join {{ ref('int_speed_calibration') }} as calibration
        on
            coalesce(calibration.backend = rooflines.backend, true)
            and coalesce(calibration.processor = rooflines.gpu, true)
            and coalesce(calibration.model = rooflines.model, true)
            and coalesce(calibration.variant = rooflines.variant, true)
            and coalesce(calibration.batch_size = rooflines.batch_size, true)
    qualify row_number() over (
        partition by
            rooflines.gpu,
            rooflines.model,
            rooflines.variant,
            rooflines.context_tokens,
            rooflines.batch_size
        order by calibration.scope
    ) = 1
)

select
    gpu,
    model,
    variant,
    backend,
    context_tokens,
    batch_size,
    decode_roofline as decode_roofline_tokens_per_s,
    case when is_measured then run_decode_tokens_per_s else decode_roofline * decode_middle end
        as decode_tokens_per_s,
    case when is_measured then run_decode_tokens_per_s_low else decode_roofline * decode_low end
        as decode_tokens_per_s_low,
    case when is_measured then run_decode_tokens_per_s_high else decode_roofline * decode_high end
        as decode_tokens_per_s_high,
    case when is_measured then 'measured' else 'estimated' end as speed_basis,
    prefill_roofline * prefill_middle as prefill_tokens_per_s,
    prefill_roofline * prefill_low as prefill_tokens_per_s_low,
    prefill_roofline * prefill_high as prefill_tokens_per_s_high,
    calibrated_on,
    cast(runs as integer) as calibration_runs
from calibrated
