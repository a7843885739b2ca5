-- The speed model's predictions: GPU x variant x context x batch, with 90 % intervals.
select
    gpu,
    model,
    variant,
    context_tokens,
    batch_size,
    decode_tokens_per_s,
    decode_tokens_per_s_low,
    decode_tokens_per_s_high,
    decode_rests_on,
    decode_runs,
    prefill_tokens_per_s,
    prefill_tokens_per_s_low,
    prefill_tokens_per_s_high,
    prefill_rests_on,
    prefill_runs
from {{ source('raw', 'speed_predictions') }}
