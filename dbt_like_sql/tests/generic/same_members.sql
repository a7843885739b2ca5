{# `columns` have the same combinations of values in the model and in `source`. #}
{% test same_members(model, source, columns) %}
{% set members = columns | join(', ') %}
(select {{ members }} from {{ model }} except select {{ members }} from {{ source }})
union all
(select {{ members }} from {{ source }} except select {{ members }} from {{ model }})
{% endtest %}
