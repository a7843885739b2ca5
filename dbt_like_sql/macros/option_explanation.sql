{# What an option that fits gives, in words. #}
{% macro option_explanation() -%}
    concat(
        printf(
            '$%.4f a million tokens at $%.4f an hour', usd_per_million_tokens, hourly_cost_usd
        ),
        case
            when price_kind = 'purchase'
                then ', paid off over {{ var("amortization_years") }} years and with power'
            else ''
        end,
        printf(
            '. A copy needs %.2f GB of the %.0f GB, %.2f GB of it for the KV cache',
            copy_gb, vram_gb, kv_cache_gb
        ),
        printf(
            '. %.0f tokens/s in all (%.0f to %.0f, %s',
            decode_tokens_per_s * gpu_count,
            decode_tokens_per_s_low * gpu_count,
            decode_tokens_per_s_high * gpu_count,
            speed_basis
        ),
        case when speed_basis = 'estimated' then concat(' from ', calibrated_on) else '' end,
        printf('), %.0f for each sequence. ', decode_tokens_per_s_per_sequence),
        case quality_basis
            when 'baseline' then 'It is the baseline of quality.'
            when 'measured'
                then printf('Its perplexity is %+.2f%% against F16.', 100 * quality_loss)
            else 'Its quality was never measured.'
        end
    )
{%- endmacro %}
