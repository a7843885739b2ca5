-- The peaks of each processor: GPUs by the registry's data sheets, this machine as measured.
select
    gpu as processor,
    'gpu' as processor_kind,
    cast(null as integer) as threads,
    memory_bandwidth_gb_s,
    fp16_dense_tflops as tflops,
    {{ var('launch_us_per_layer') }} as launch_us_per_layer
from {{ ref('stg_gpus') }}
union all
select
    cpu_name,
    'cpu',
    threads,
    memory_bandwidth_gb_s,
    matmul_tflops,
    0
from {{ ref('stg_hosts') }}
