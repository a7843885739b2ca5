{# Values that are present lie between `minimum` and `maximum`, which belong to the range unless
   `exclusive`; a bound that is not given does not hold. #}
{% test in_range(model, column_name, minimum=none, maximum=none, exclusive=false) %}
select {{ column_name }}
from {{ model }}
where
    false
    {% if minimum is not none %}
        or {{ column_name }} {{ '<=' if exclusive else '<' }} {{ minimum }}
    {% endif %}
    {% if maximum is not none %}
        or {{ column_name }} {{ '>=' if exclusive else '>' }} {{ maximum }}
    {% endif %}
    or isnan(cast({{ column_name }} as double))
{% endtest %}
