{# Least seconds that a machine needs: bytes over bandwidth (GB/s) or operations over throughput
   (TFLOP/s), whichever is longer. Where throughput is not known, bandwidth alone decides. #}
{% macro roofline_seconds(bytes, flops, gb_s, tflops) -%}
    greatest({{ bytes }} / ({{ gb_s }} * 1e9), coalesce({{ flops }} / ({{ tflops }} * 1e12), 0))
{%- endmacro %}
