{# The conditions of a run that decide its speed beside model, variant and batch size, as columns of
   `table` or of the only table in scope. Speeds are compared only where all of them are equal. #}
{% macro run_conditions(table=none) -%}
    {%- for column in [
        'host_id', 'processor', 'device', 'threads', 'prompt_tokens', 'generated_tokens'
    ] -%}
        {{ table ~ '.' if table }}{{ column }}{{ ', ' if not loop.last }}
    {%- endfor -%}
{%- endmacro %}

{# Whether two tables in scope have equal conditions; null equals null. #}
{% macro equal_run_conditions(a, b) -%}
    ({{ run_conditions(a) }}) is not distinct from ({{ run_conditions(b) }})
{%- endmacro %}
