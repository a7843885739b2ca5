"""Run in a separate process: many questions to the allocator, without a start for each.

Reads a JSON list of jobs and prints one JSON line per job: its allocations, or the error.
"""

import json
import os
import sys
from pathlib import Path

from quant_assets.capacity.allocator import AllocationJob
from quant_assets.errors import QuantAssetsError
from quant_assets.processes.protocol import EventChannel
from quant_assets.workers.llama_cpp.memory import allocate


def answer(jobs: list[AllocationJob]) -> None:
    """Print the answers to `jobs`."""
    with Path(os.devnull).open("w", encoding="utf-8") as nowhere:
        channel = EventChannel(nowhere)
        for job in jobs:
            try:
                line = allocate(job, channel).model_dump_json()
            except QuantAssetsError as error:
                line = json.dumps({"error": str(error)})
            sys.stdout.write(line + "\n")


if __name__ == "__main__":
    answer([AllocationJob.model_validate(job) for job in json.load(sys.stdin)])
