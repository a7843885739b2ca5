-- The highest peaks seen of each processor and number of threads; a busy machine shows lower ones.
select
    cpu_name,
    threads,
    greatest(max(triad_gb_s), max(read_gb_s)) as memory_bandwidth_gb_s,
    max(matmul_gflop_s) / 1e3 as matmul_tflops,
    bool_and(contended) as contended,
    max(measured_at) as measured_at
from {{ source('raw', 'hosts') }}
where cpu_name is not null
group by cpu_name, threads
