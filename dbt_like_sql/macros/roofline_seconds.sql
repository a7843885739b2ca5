{# Lower bound on the seconds that a processor needs for a step of `needs`: the longer of bytes over
   bandwidth and operations over peak compute (bandwidth alone where peak compute is unknown).
   `phase` is decode or prefill. The macro expects `needs` and `processors` in scope. #}
{% macro roofline_seconds(phase) -%}
    greatest(
        needs.{{ phase }}_bytes / (processors.memory_bandwidth_gb_s * 1e9),
        coalesce(needs.{{ phase }}_flops / (processors.tflops * 1e12), 0)
    )
{%- endmacro %}
