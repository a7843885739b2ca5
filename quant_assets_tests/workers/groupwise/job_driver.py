"""Runs jobs in forked children of one process, so that the libraries are imported once.

`python job_driver.py` reads {"jobs": [...], "kills": n, "seed": n} from standard input and runs all
jobs. With `kills`, the first job runs undisturbed, and every other one is killed that many times
first, at random moments within the time that the first one took. One JSON line per job holds the
result of its last run.
"""

import io
import json
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from typing import Any

from quant_assets.processes.protocol import EventChannel
from quant_assets.quantize.groupwise.job import GroupwiseJob, GroupwiseResult


def in_child(work: Callable[[], dict[str, Any]], kill_after_s: float | None) -> dict[str, Any]:
    """The answer of `work`, run in a child; empty if the child was killed before it ended."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        with os.fdopen(writer, "w") as stream:
            json.dump(work(), stream)
        os._exit(0)
    os.close(writer)
    if kill_after_s is not None:
        time.sleep(kill_after_s)
        os.kill(child, signal.SIGKILL)
    with os.fdopen(reader) as stream:
        answer = stream.read()
    os.waitpid(child, 0)
    return json.loads(answer) if answer.endswith("}") else {}


def main() -> None:
    """Import what the first job needs, then run all jobs."""
    task = json.load(sys.stdin)
    jobs = [GroupwiseJob.model_validate(job) for job in task["jobs"]]
    if jobs[0].settings.engine == "autoawq":
        from quant_assets.workers.groupwise.awq import autoawq_engine  # noqa: F401
        from quant_assets.workers.groupwise.awq.__main__ import handle as awq
    else:
        from logbar.buffer import QueueingStdout

        # It waits for a thread that a forked child does not have.
        QueueingStdout.flush = lambda _: None
        from quant_assets.workers.groupwise.awq import gptqmodel_engine  # noqa: F401
        from quant_assets.workers.groupwise.awq.__main__ import handle as awq
        from quant_assets.workers.groupwise.gptq import solver  # noqa: F401
    from quant_assets.workers.groupwise.gptq.__main__ import handle as gptq

    chance = random.Random(task["seed"])
    whole_s = 0.0
    for number, job in enumerate(jobs):
        handle = gptq if job.settings.format == "gptq" else awq

        def work(
            job: GroupwiseJob = job,
            handle: Callable[[GroupwiseJob, EventChannel], GroupwiseResult] = handle,
        ) -> dict[str, Any]:
            return handle(job, EventChannel(io.StringIO())).model_dump(mode="json")

        for _ in range(task["kills"] if number else 0):
            in_child(work, chance.random() * whole_s)
        started = time.monotonic()
        print("ANSWER " + json.dumps(in_child(work, None)), flush=True)
        whole_s = whole_s or time.monotonic() - started


if __name__ == "__main__":
    main()
