-- The newest measurement of each artifact's KV cache types at each context and on each text.
select *
from {{ source('raw', 'kv_cache_quality') }}
qualify row_number() over (
    partition by
        model,
        variant,
        artifact_id,
        cache_type_k,
        cache_type_v,
        context_tokens,
        text_sha256,
        windows
    order by {{ newest_first('measured_at') }}
) = 1
