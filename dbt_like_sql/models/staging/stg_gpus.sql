-- The GPU registry, one row a card. Null: its maker does not publish the figure.
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
