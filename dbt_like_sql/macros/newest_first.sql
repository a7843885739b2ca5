{# For `order by`: newest first. A time more than a day in the future comes from a wrong clock and
   is sorted last (as in quant_assets/record_files.py, `recency`). #}
{% macro newest_first(column) -%}
    {{ column }} > current_timestamp + interval 1 day, {{ column }} desc
{%- endmacro %}
