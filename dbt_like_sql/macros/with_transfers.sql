{# Decoding throughput of a copy whose GPUs pass activations on: every step also takes `transfer_s`. #}
{% macro with_transfers(tokens_per_s) -%}
    options.batch_size / (options.batch_size / {{ tokens_per_s }} + options.transfer_s)
{%- endmacro %}
