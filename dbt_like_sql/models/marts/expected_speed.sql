-- GPU x variant x context x batch: throughput of one copy that has a GPU to itself, whether or not
-- it fits. The speed model predicts it; runs of the same cell on the same GPU, at half to twice the
-- context, replace the prediction.
select
    predicted.gpu,
    predicted.model,
    predicted.variant,
    predicted.context_tokens,
    predicted.batch_size,
    coalesce(measured.decode_tokens_per_s, predicted.decode_tokens_per_s) as decode_tokens_per_s,
    coalesce(measured.decode_tokens_per_s_low, predicted.decode_tokens_per_s_low)
        as decode_tokens_per_s_low,
    coalesce(measured.decode_tokens_per_s_high, predicted.decode_tokens_per_s_high)
        as decode_tokens_per_s_high,
    case when measured.decode_runs > 0 then 'measured' else predicted.decode_rests_on end
        as speed_basis,
    coalesce(nullif(measured.decode_runs, 0), predicted.decode_runs) as speed_runs,
    coalesce(measured.prefill_tokens_per_s, predicted.prefill_tokens_per_s)
        as prefill_tokens_per_s,
    coalesce(measured.prefill_tokens_per_s_low, predicted.prefill_tokens_per_s_low)
        as prefill_tokens_per_s_low,
    coalesce(measured.prefill_tokens_per_s_high, predicted.prefill_tokens_per_s_high)
        as prefill_tokens_per_s_high,
    case when measured.prefill_runs > 0 then 'measured' else predicted.prefill_rests_on end
        as prefill_basis,
    coalesce(nullif(measured.prefill_runs, 0), predicted.prefill_runs) as prefill_runs
from {{ ref('stg_speed_predictions') }} as predicted
left join {{ ref('int_measured_speeds') }} as measured
    on
        predicted.gpu = measured.gpu
        and predicted.model = measured.model
        and predicted.variant = measured.variant
        and predicted.context_tokens = measured.context_tokens
        and predicted.batch_size = measured.batch_size
