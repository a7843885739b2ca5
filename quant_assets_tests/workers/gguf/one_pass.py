"""The engine on many jobs in one child process: the counterpart of `two_step.py`.

`python one_pass.py TASKS.json` takes the same tasks and prints each result as a JSON line.
"""

import json
import sys
from pathlib import Path
from typing import Any

from quant_assets.processes.protocol import EventChannel
from quant_assets.quantize.gguf.job import QuantizeGgufJob
from quant_assets.workers.gguf.engine import quantize


def main(tasks: list[dict[str, Any]]) -> None:
    """Run all tasks without loading the results."""
    channel = EventChannel(sys.stderr)
    for task in tasks:
        job = QuantizeGgufJob(
            source=task["source"],
            source_kind=task["kind"],
            source_identity="the same",
            level=task["level"],
            output=task["output"],
            imatrix=task.get("imatrix"),
            threads=2,
            validate_output=False,
        )
        print(quantize(job, channel).model_dump_json())


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text()))
