"""The runs of a benchmark cell, the same for every engine: warm-up, then timed runs."""

import gc
from collections.abc import Callable

from quant_assets.bench.jobs import RUNS, WARM_UP, CellJob, RunSample
from quant_assets.processes.protocol import EventChannel


def sampled_runs(
    run: Callable[[], RunSample], job: CellJob, channel: EventChannel
) -> list[RunSample]:
    """Call `run` for the warm-up, then once per sample; the garbage collector rests meanwhile."""
    channel.progress(WARM_UP, 0, job.warmups, "runs")
    for done in range(job.warmups):
        run()
        channel.progress(WARM_UP, done + 1, job.warmups, "runs")
    samples = []
    channel.progress(RUNS, 0, job.runs, "runs")
    gc.disable()
    for done in range(job.runs):
        samples.append(run())
        channel.progress(RUNS, done + 1, job.runs, "runs")
    gc.enable()
    return samples
