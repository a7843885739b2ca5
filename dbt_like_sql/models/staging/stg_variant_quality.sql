-- The newest measurement of each kind of an artifact as a variant runs it.
select *
from {{ source('raw', 'variant_quality') }}
qualify row_number() over (
    partition by model, variant, artifact_id, kind order by {{ newest_first('measured_at') }}, text
) = 1
