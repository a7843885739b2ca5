{# One sentence a figure, for a row of deployment_options with `place` and `options_compared`. #}
{% macro recommendation_reason() -%}
    concat(
        printf(
            'Number %d of %d suitable options: $%.4f a million tokens at $%.4f an hour',
            place, options_compared, usd_per_million_tokens, hourly_cost_usd
        ),
        case when price_kind = 'purchase' then ', paid off over time and with power' else '' end,
        printf(
            '. %s needs %.2f GB of the %.0f GB, %.2f GB of it for the KV cache',
            variant, copy_gb, vram_gb, kv_cache_gb
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
            when 'measured' then printf('Its perplexity is %+.2f%% of F16''s.', 100 * quality_loss)
            else 'Its quality was never measured.'
        end
    )
{%- endmacro %}
