-- The variants: which artifact to run, with which KV cache types.
select
    variant,
    format,
    upper(level) as level,
    cache_type_k,
    cache_type_v,
    description
from {{ source('raw', 'variants') }}
