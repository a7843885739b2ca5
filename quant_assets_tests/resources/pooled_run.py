"""A process that runs a job with a step in each pool, as `quant-assets demo` runs its jobs.

`python -m quant_assets_tests.resources.pooled_run <seconds in device> <seconds in warehouse>`. It
prints a line when a step gets its slot, and `finished` at the end.
"""

import os
import subprocess
import sys
import time

import dagster as dg

from quant_assets.processes.guarded import guarded
from quant_assets.processes.interruption import prompt_end, received_signal
from quant_assets.resources.executor import execute_here
from quant_assets.resources.instance import dagster_instance
from quant_assets.resources.run_processes import end_dead_runs
from quant_assets.settings import Settings

CHILD = [sys.executable, "-S", "-c", "import time; time.sleep(600)"]


def pooled_job(device_s: float, warehouse_s: float) -> dg.JobDefinition:
    @dg.op(pool="device")
    def measure() -> None:
        _work("device", device_s)

    @dg.op(pool="warehouse", ins={"start": dg.In(dg.Nothing)})
    def build() -> None:
        _work("warehouse", warehouse_s)

    @dg.job(name="pooled")
    def pooled() -> None:
        build(start=measure())

    return pooled


def _work(pool: str, step_s: float) -> None:
    child = subprocess.Popen(guarded(CHILD), start_new_session=True)
    # Standard output of a step goes to its compute log.
    os.write(int(os.environ["REPORT_TO"]), f"{pool} {child.pid}\n".encode())
    try:
        time.sleep(step_s)
    finally:
        child.terminate()
        child.wait()


def main() -> None:
    os.environ["REPORT_TO"] = str(os.dup(1))
    with prompt_end(), dagster_instance(Settings()) as instance:
        for run in end_dead_runs(instance):
            os.write(1, f"ended {run.run_id}\n".encode())
        os.write(1, b"started\n")
        try:
            assert execute_here(pooled_job(*map(float, sys.argv[1:])), instance).success
            os.write(1, b"finished\n")
        except KeyboardInterrupt:
            sys.exit(128 + (received_signal() or 0))


if __name__ == "__main__":
    main()
