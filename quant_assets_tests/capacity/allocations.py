"""What llama.cpp allocates for many models, asked in one process."""

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from quant_assets.capacity.allocator import Allocation, AllocationJob, AllocationResult


def allocations(jobs: Sequence[AllocationJob]) -> list[list[Allocation]]:
    """The allocations of each job; raises `RuntimeError` where llama.cpp refuses one."""
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("allocation_probe.py"))],
        input=json.dumps([job.model_dump(mode="json") for job in jobs]),
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    for job, answer in zip(jobs, answers, strict=True):
        if "error" in answer:
            raise RuntimeError(f"{job.model.name}: {answer['error']}")
    return [AllocationResult.model_validate(answer).allocations for answer in answers]
