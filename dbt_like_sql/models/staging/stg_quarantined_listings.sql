-- Offers that were set aside, each with its reason.
select
    row_id,
    source_file,
    line_number,
    title,
    reason,
    explanation,
    candidates
from {{ source('raw', 'quarantined_listings') }}
