-- The peaks of each processor: GPUs by the registry's data sheets, CPUs as measured. Where a CPU's
-- peaks were measured beside other load only, its uncontended runs raise them: what a run reached is
-- a lower bound as well.
with reached as (
    select
        runs.cpu_name,
        runs.threads,
        max(needs.decode_bytes * runs.decode_tokens_per_s / runs.batch_size) / 1e9
            as memory_bandwidth_gb_s,
        max(needs.prefill_flops * runs.prefill_tokens_per_s / (runs.batch_size * runs.prompt_tokens))
        / 1e12 as tflops
    from {{ ref('stg_benchmark_runs') }} as runs
    {{ join_needs_of_runs() }}
    where runs.device = 'cpu' and not runs.contended
    group by runs.cpu_name, runs.threads
)

select
    gpu as processor,
    'gpu' as processor_kind,
    cast(null as integer) as threads,
    memory_bandwidth_gb_s,
    fp16_dense_tflops as tflops,
    false as peaks_contended
from {{ ref('stg_gpus') }}
union all
select
    hosts.cpu_name,
    'cpu',
    hosts.threads,
    case
        when hosts.peaks_contended
            then greatest(hosts.memory_bandwidth_gb_s, reached.memory_bandwidth_gb_s)
        else hosts.memory_bandwidth_gb_s
    end,
    case
        when hosts.peaks_contended then greatest(hosts.matmul_tflops, reached.tflops)
        else hosts.matmul_tflops
    end,
    hosts.peaks_contended
from {{ ref('stg_hosts') }} as hosts
left join reached
    on hosts.cpu_name = reached.cpu_name and hosts.threads = reached.threads
