"""Child script: quantize and load every GGUF file of a folder, each in its own process.

Prints one JSON line per file: `answer` is `made`, `refused`, or `died` with the signal. Forking is
cheaper than starting a worker, and a native abort ends only one file's process.
"""

import io
import json
import os
import resource
import shutil
import signal
import sys
from pathlib import Path

from quant_assets.errors import QuantAssetsError
from quant_assets.processes.protocol import EventChannel
from quant_assets.quantize.gguf.job import QuantizeGgufJob, ValidateGgufJob
from quant_assets.workers.gguf.engine import quantize
from quant_assets.workers.gguf.validate import validate

TIME_LIMIT_S = 60
MEMORY_LIMIT_BYTES = 8 * 10**9
MADE, REFUSED, FAILED = 0, 3, 1


def work(path: Path, output: Path) -> int:
    """Process one file as a worker does; the exit code is the outcome."""
    job = QuantizeGgufJob(
        source=path,
        source_kind="gguf",
        source_identity=path.name,
        level="Q8_0",
        output=output / "model.gguf",
        threads=1,
        validate_output=False,
    )
    answer = MADE
    for step in (
        lambda: quantize(job, EventChannel(io.StringIO())),
        lambda: validate(ValidateGgufJob(path=path, threads=1), EventChannel(io.StringIO())),
    ):
        try:
            step()
        except QuantAssetsError as error:
            assert error.what and error.why and error.next_step  # noqa: PT017
            answer = REFUSED
    return answer


def main() -> None:
    """Go through the folder."""
    folder, outputs = Path(sys.argv[1]), Path(sys.argv[2])
    for number, path in enumerate(sorted(folder.glob("*.gguf"))):
        output = outputs / str(number)
        child = os.fork()
        if child == 0:
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            signal.alarm(TIME_LIMIT_S)
            code = FAILED
            try:
                code = work(path, output)
            finally:
                sys.stderr.flush()
                os._exit(code)
        _, status = os.waitpid(child, 0)
        died = os.WTERMSIG(status) if os.WIFSIGNALED(status) else None
        code = os.waitstatus_to_exitcode(status)
        answer = {MADE: "made", REFUSED: "refused", FAILED: "failed"}.get(code, "died")
        print(json.dumps({"file": path.name, "answer": answer, "signal": died}), flush=True)
        shutil.rmtree(output, ignore_errors=True)


if __name__ == "__main__":
    main()
