-- One row per model and variant: the artifact that the variant runs now. Variants without an
-- artifact are absent.
select
    artifacts.model,
    variants.variant,
    artifacts.format,
    artifacts.level,
    variants.cache_type_k,
    variants.cache_type_v,
    variants.description,
    artifacts.artifact_id,
    artifacts.size_bytes,
    artifacts.size_gb,
    artifacts.bits_per_weight,
    artifacts.size_bytes / baseline.size_bytes as size_ratio_to_f16,
    artifacts.created_at,
    coalesce(
        artifacts.format = 'gguf'
        and artifacts.level = 'F16'
        and variants.cache_type_k = 'f16'
        and variants.cache_type_v = 'f16',
        false
    ) as is_baseline
from {{ ref('stg_variants') }} as variants
inner join {{ ref('stg_artifacts') }} as artifacts
    on variants.format = artifacts.format and variants.level = artifacts.level
left join {{ ref('stg_artifacts') }} as baseline
    on artifacts.model = baseline.model and baseline.format = 'gguf' and baseline.level = 'F16'
