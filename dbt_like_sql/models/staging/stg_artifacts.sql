-- The newest valid artifact of each model, format and level.
select
    job_id as artifact_id,
    model,
    format,
    upper(level) as level,
    size_bytes,
    size_bytes / 1e9 as size_gb,
    n_parameters,
    bits_per_weight,
    perplexity,
    source_provenance,
    path,
    created_at
from {{ source('raw', 'artifacts') }}
where status = 'valid'
qualify row_number() over (
    partition by model, format, upper(level) order by {{ newest_first('created_at') }}, job_id
) = 1
