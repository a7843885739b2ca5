"""One long operation as its caller sees it: state, progress, expected end and memory."""

import datetime
from typing import Literal

from pydantic import BaseModel, Field

from quant_assets.processes.memory import MemoryUsage


class QuantizationJob(BaseModel):
    """A quantization, or another long operation that workers carry out.

    `step` is the current step, the `step_number`th of `n_steps`; null where a worker has not said.
    `progress_percentage` counts the whole job and never decreases. `estimated_completion` is null
    until there is a measured pace to estimate from; of an ended job it is the end. `memory_usage`
    is that of the worker that has last reported; its peaks are the largest of all workers.
    """

    status: Literal["pending", "running", "completed", "failed"]
    step: str | None = None
    step_number: int | None = None
    n_steps: int | None = None
    progress_percentage: float = Field(default=0.0, ge=0, le=100)
    start_time: datetime.datetime
    estimated_completion: datetime.datetime | None = None
    memory_usage: MemoryUsage | None = None
