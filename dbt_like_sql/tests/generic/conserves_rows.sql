{# The model has exactly one row for each row of `source`, which `where` narrows down. #}
{% test conserves_rows(model, source, where='true') %}
with counts as (
    select
        (select count(*) from {{ model }}) as kept,
        (select count(*) from {{ source }} where {{ where }}) as received
)

select * from counts where kept <> received
{% endtest %}
