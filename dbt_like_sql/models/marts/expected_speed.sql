-- GPU x variant x context x batch: tokens a second of one copy that has a GPU to itself, whether or
-- not it fits. The roofline times an efficiency calibrated by measured runs; a run of the same cell
-- on the same GPU, at half to twice the context, replaces the estimate.
with rooflines as (
    select
        gpus.processor as gpu,
        needs.model,
        needs.variant,
        needs.backend,
        needs.context_tokens,
        needs.batch_size,
        needs.batch_size
        / {{ roofline_seconds('needs.decode_bytes', 'needs.decode_flops',
                              'gpus.memory_bandwidth_gb_s', 'gpus.tflops') }} as decode_roofline,
        case
            when gpus.tflops is not null
                then
                    needs.batch_size * needs.prompt_tokens
                    / {{ roofline_seconds('needs.prefill_bytes', 'needs.prefill_flops',
                                          'gpus.memory_bandwidth_gb_s', 'gpus.tflops') }}
        end as prefill_roofline
    from {{ ref('int_processors') }} as gpus
    cross join {{ ref('stg_serving_needs') }} as needs
    where
        gpus.processor_kind = 'gpu'
        and gpus.memory_bandwidth_gb_s is not null
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
