{# A text and its windows, in words. #}
{% macro text_description(text, windows, context_tokens) -%}
    concat(
        coalesce({{ text }}, 'a text'),
        printf(' (%d windows of %d tokens)', {{ windows }}, {{ context_tokens }})
    )
{%- endmacro %}
