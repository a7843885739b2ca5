"""`python -m quant_assets.workers.gguf`: run one job of any of the worker's tasks."""

import os
import sys
from typing import Annotated

from pydantic import BaseModel, Field, RootModel

from quant_assets.processes.protocol import EventChannel, serve
from quant_assets.quantize.gguf.job import GgufPlanJob, ImatrixJob, QuantizeGgufJob, ValidateGgufJob


class GgufJob(
    RootModel[
        Annotated[
            GgufPlanJob | QuantizeGgufJob | ImatrixJob | ValidateGgufJob,
            Field(discriminator="task"),
        ]
    ]
):
    """A job of this worker, discriminated by `task`."""


def handle(job: GgufJob, channel: EventChannel) -> BaseModel:
    """Run the job; each task imports only what it needs."""
    task = job.root
    if isinstance(task, ValidateGgufJob):
        from quant_assets.workers.gguf.validate import validate

        return validate(task, channel)
    if isinstance(task, ImatrixJob):
        from quant_assets.workers.gguf.imatrix import compute_imatrix

        return compute_imatrix(task, channel)
    if isinstance(task, GgufPlanJob):
        from quant_assets.workers.gguf.prepare import plan_only

        return plan_only(task, channel)
    from quant_assets.workers.gguf.engine import quantize_and_report

    return quantize_and_report(task, channel)


if __name__ == "__main__":
    serve(GgufJob, handle)
    sys.stderr.flush()
    # The result is sent; tearing down torch's modules would take a second.
    os._exit(0)
