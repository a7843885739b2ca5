-- The newest measurement of each kind, by artifact, variant and, for perplexity, what it was measured
-- on: the text, the number of its windows and their length.
select *
from {{ source('raw', 'variant_quality') }}
qualify row_number() over (
    partition by model, variant, artifact_id, kind, text_sha256, windows, context_tokens
    order by {{ newest_first('measured_at') }}, text
) = 1
