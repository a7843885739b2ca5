-- The newest measurement of each kind, by artifact and variant.
select *
from {{ source('raw', 'variant_quality') }}
qualify row_number() over (
    partition by model, variant, artifact_id, kind order by {{ newest_first('measured_at') }}, text
) = 1
