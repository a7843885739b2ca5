{# The model has as many rows as `source`, of which only those count that satisfy `where`. #}
{% test conserves_rows(model, source, where='true') %}
with counts as (
    select
        (select count(*) from {{ model }}) as kept,
        (select count(*) from {{ source }} where {{ where }}) as received
)

select * from counts where kept <> received
{% endtest %}
