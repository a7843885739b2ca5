-- How each GPU holds a copy: GPU x variant x context x batch.
select
    gpu,
    model,
    variant,
    context_tokens,
    batch_size,
    gpus_per_card,
    gpu_memory_bytes / 1e9 as gpu_memory_gb,
    gpus_per_copy,
    copies_per_gpu,
    fullest_gpu_bytes / 1e9 as fullest_gpu_gb,
    transfer_s
from {{ source('raw', 'placements') }}
