-- The GPU registry, one row per card; null where the manufacturer does not publish a figure.
select
    canonical_name as gpu,
    vendor,
    architecture,
    vram_gb,
    memory_bandwidth_gb_s,
    tdp_w,
    fp16_dense_tflops,
    release_year
from {{ source('raw', 'gpus') }}
