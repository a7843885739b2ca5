{# Least seconds that a processor needs for a step of `needs`: bytes over bandwidth or operations over
   throughput, whichever is longer (where throughput is not known, bandwidth alone decides), and the
   launches of the layers' kernels. `phase` is decode or prefill; `needs`, `processors` and `models`
   are in scope. #}
{% macro roofline_seconds(phase) -%}
    (
        greatest(
            needs.{{ phase }}_bytes / (processors.memory_bandwidth_gb_s * 1e9),
            coalesce(needs.{{ phase }}_flops / (processors.tflops * 1e12), 0)
        )
        + models.n_layers * processors.launch_us_per_layer / 1e6
    )
{%- endmacro %}
