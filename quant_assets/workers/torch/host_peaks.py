"""Worker: the peaks of this machine: memory bandwidth and dense matrix throughput.

Bandwidth is the higher of STREAM's triad, a = b + s x c (McCalpin, 1995; three arrays counted), and
a plain sum that reads one array. The arrays are far larger than the caches. Throughput is measured
on products of square FP32 matrices, 2 n^3 operations each. Both are the best of several
repetitions: they are the denominators of the roofline, and any other load can only lower them.
"""

import time
from collections.abc import Callable

import torch

from quant_assets.host.conditions import HostWatch, cpu_name
from quant_assets.processes.protocol import EventChannel, serve
from quant_assets.speed.host_peaks import HostPeaks, HostPeaksJob

_STEP = "host peaks"
_STEPS = 3


def _best_seconds(action: Callable[[], object], repetitions: int) -> float:
    action()
    best = float("inf")
    for _ in range(repetitions):
        start = time.perf_counter()
        action()
        best = min(best, time.perf_counter() - start)
    return best


def measure(job: HostPeaksJob, channel: EventChannel) -> HostPeaks:
    """Run the three kernels."""
    channel.plan_steps({_STEP: 100})
    watch = HostWatch()
    torch.set_num_threads(job.threads)
    torch.set_grad_enabled(False)
    length = job.array_bytes // 4
    a, b, c = (torch.full((length,), value) for value in (0.0, 1.0, 2.0))
    triad_s = _best_seconds(lambda: torch.add(b, c, alpha=3.0, out=a), job.repetitions)
    channel.progress(_STEP, 1, _STEPS, "kernels")
    read_s = _best_seconds(lambda: torch.sum(b), job.repetitions)
    channel.progress(_STEP, 2, _STEPS, "kernels")
    left = torch.rand(job.matrix_size, job.matrix_size)
    right, product = left.clone(), torch.empty_like(left)
    matmul_s = _best_seconds(lambda: torch.matmul(left, right, out=product), job.repetitions)
    channel.progress(_STEP, _STEPS, _STEPS, "kernels")
    return HostPeaks(
        cpu_name=cpu_name(),
        threads=job.threads,
        triad_gb_s=3 * 4 * length / triad_s / 1e9,
        read_gb_s=4 * length / read_s / 1e9,
        matmul_gflop_s=2 * job.matrix_size**3 / matmul_s / 1e9,
        contended=watch.finish().contended,
        library_versions={"torch": torch.__version__},
    )


if __name__ == "__main__":
    serve(HostPeaksJob, measure, sample_memory=False)
