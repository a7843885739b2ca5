-- One row per model, variant and context: what the variant's KV cache types alone cost, against the
-- same weights with an F16 cache on the same tokens. Only tokens near the end of a context are scored,
-- because the loss grows with the number of tokens in the cache.
select *
from {{ ref('int_kv_cache_quality') }}
order by model, variant, context_tokens
