-- Offers that were set aside, with the reason.
select
    row_id,
    source_file,
    line_number,
    title,
    reason,
    reason_text
from {{ source('raw', 'quarantined_listings') }}
