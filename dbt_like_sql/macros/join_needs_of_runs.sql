{# Joins the work of each run in scope as `runs`: the needs at its own lengths and batch size. #}
{% macro join_needs_of_runs() -%}
    inner join {{ ref('stg_serving_needs') }} as needs
        on
            runs.model = needs.model
            and runs.variant = needs.variant
            and runs.batch_size = needs.batch_size
            and runs.prompt_tokens = needs.prompt_tokens
            and runs.generated_tokens = needs.generated_tokens
            and needs.point_source = 'run'
{%- endmacro %}
