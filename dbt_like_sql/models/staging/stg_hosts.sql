-- The highest measured peaks of each processor and number of threads, of whichever machine has it.
-- Other load only lowers a measurement, so contended ones count only where there is no other: they
-- are lower bounds of the peaks.
select
    cpu_name,
    threads,
    greatest(max(triad_gb_s), max(read_gb_s)) as memory_bandwidth_gb_s,
    max(matmul_gflop_s) / 1e3 as matmul_tflops,
    bool_or(contended) as peaks_contended,
    max(measured_at) as measured_at
from (
    select *
    from {{ source('raw', 'hosts') }}
    where cpu_name is not null
    qualify not contended or bool_and(contended) over (partition by cpu_name, threads)
)
group by cpu_name, threads
