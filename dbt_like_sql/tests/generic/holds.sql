{# `condition` is true in every row; a row where it is null does not fail. #}
{% test holds(model, condition) %}
select * from {{ model }} where not ({{ condition }})
{% endtest %}
