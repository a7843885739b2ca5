-- The highest measured peaks of each processor and number of threads. Contended measurements are
-- left out: they understate the peaks.
select
    cpu_name,
    threads,
    greatest(max(triad_gb_s), max(read_gb_s)) as memory_bandwidth_gb_s,
    max(matmul_gflop_s) / 1e3 as matmul_tflops,
    max(measured_at) as measured_at
from {{ source('raw', 'hosts') }}
where cpu_name is not null and not contended
group by cpu_name, threads
