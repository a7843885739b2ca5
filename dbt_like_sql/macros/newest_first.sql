{# The newest first, for `order by`. A time more than a day ahead was written by a wrong clock; it
   comes after all others (quant_assets/record_files.py, `recency`). #}
{% macro newest_first(column) -%}
    {{ column }} > current_timestamp + interval 1 day, {{ column }} desc
{%- endmacro %}
