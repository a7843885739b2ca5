{# USD per hour in which an offer computes: the rent, or the amortized purchase price plus the power
   of its GPUs. Power counts only where the card's board power is known. #}
{% macro hourly_cost_usd(price_kind, price_usd, tdp_w, gpu_count) -%}
    case
        when {{ price_kind }} = 'hourly' then {{ price_usd }}
        when {{ price_kind }} = 'purchase'
            then
                {{ price_usd }}
                / ({{ var('amortization_years') }} * 365.25 * 24 * {{ var('utilization') }})
                + coalesce({{ tdp_w }} * {{ gpu_count }} / 1000.0, 0) * {{ var('usd_per_kwh') }}
    end
{%- endmacro %}
