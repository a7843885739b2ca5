{# The figures of an option with a price and a speed, in words. #}
{% macro option_explanation() -%}
    concat(
        printf(
            '$%.4f per million tokens at $%.4f per hour', usd_per_million_tokens, hourly_cost_usd
        ),
        case
            when price_kind = 'purchase'
                then ', amortized over {{ var("amortization_years") }} years, power included'
            else ''
        end,
        case
            when gpus_per_copy > 1
                then
                    printf(
                        '. A copy needs %.2f GB, split over %d GPUs of %.0f GB by layers',
                        copy_gb, gpus_per_copy, gpu_memory_gb
                    )
            else printf('. A copy needs %.2f of %.0f GB', copy_gb, vram_gb)
        end,
        printf(', including %.2f GB for the KV cache', kv_cache_gb),
        printf(
            '. %.0f tokens/s in total (%.0f to %.0f, ',
            decode_tokens_per_s * busy_copies,
            decode_tokens_per_s_low * busy_copies,
            decode_tokens_per_s_high * busy_copies
        ),
        case
            when speed_basis = 'measured' then 'measured'
            else
                concat(
                    'estimated from ',
                    speed_runs,
                    case when speed_runs = 1 then ' run on ' else ' runs on ' end,
                    case speed_basis
                        when 'its architecture' then 'GPUs of its architecture'
                        when 'its maker' then 'GPUs of its maker'
                        else speed_basis
                    end
                )
        end,
        printf('), %.0f per sequence. ', decode_tokens_per_s_per_sequence),
        case quality_basis
            when 'baseline' then 'It is the quality baseline.'
            when 'measured'
                then concat(
                    printf('Its perplexity is %+.2f%% relative to F16', 100 * quality_loss),
                    case
                        when quality_loss_low is not null
                            then printf(
                                ' (%+.2f%% to %+.2f%%)',
                                100 * quality_loss_low, 100 * quality_loss_high
                            )
                        else ''
                    end,
                    '.'
                )
            else concat('I', substr(unmeasured_because, 2), '.')
        end,
        case
            when kv_cache_loss is null then ''
            else concat(
                printf(
                    ' At %d tokens of context its KV cache types alone cost %+.2f%%',
                    kv_cache_context_tokens, 100 * kv_cache_loss
                ),
                case
                    when kv_cache_loss_low is not null
                        then printf(
                            ' (%+.2f%% to %+.2f%%)',
                            100 * kv_cache_loss_low, 100 * kv_cache_loss_high
                        )
                    else ''
                end,
                '.'
            )
        end
    )
{%- endmacro %}
