{# Values are between `minimum` and `maximum`, inclusive unless `exclusive`; either bound may be
   omitted. Nulls pass, NaN fails. #}
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
