"""The executor of all jobs: steps run in one process and wait for pools without spinning.

Dagster's in-process executor busy-waits while a pool is taken and cannot be interrupted meanwhile.
This one sleeps between attempts, logs what it waits for, ends runs whose process is gone, gives up
after a limit, and handles signals. Dagster has no public interface for executors of this kind: the
private names below are those that its own in-process executor uses.
"""

import logging
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import dagster as dg

# The config schema of the in-process executor, so that run configs written for it stay valid.
from dagster._core.definitions.executor_definition import IN_PROC_CONFIG

# The job wrapper that `core_execute_in_process` takes.
from dagster._core.definitions.job_base import InMemoryJob

# The event that names the executing process, and the reason that marks an interrupted run.
from dagster._core.events import EngineEventData, RunFailureReason

# The loop over a plan's events that finishes its run, whatever ends it.
from dagster._core.execution.api import ExecuteRunWithPlanIterable

# Types of what an executor and its loop are given.
from dagster._core.execution.context.system import PlanExecutionContext, PlanOrchestrationContext

# Sets up the run's resources and loggers around the loop.
from dagster._core.execution.context_creation_job import PlanExecutionContextManager

# `JobDefinition.execute_in_process` replaces the job's executor; the function behind it does not.
from dagster._core.execution.execute_in_process import core_execute_in_process

# Runs the steps of a plan, and takes the object that claims their pool slots.
from dagster._core.execution.plan.execute_plan import inner_plan_execution_iterator

# Dagster's claims of pool slots, which `PatientClaims` extends.
from dagster._core.execution.plan.instance_concurrency_context import InstanceConcurrencyContext

# A type: the steps to execute.
from dagster._core.execution.plan.plan import ExecutionPlan

# The return type of an executor's `retries`.
from dagster._core.execution.retries import RetryMode

from quant_assets.errors import ResourceError
from quant_assets.host.locks import ANNOUNCED_AFTER_S, LONG_WAIT_S, exclusive_lock
from quant_assets.processes.interruption import received_signal
from quant_assets.resources.run_processes import end_dead_runs, process_tags, slot_holder

ATTEMPT_EVERY_S = 0.5
LOOK_FOR_DEAD_RUNS_EVERY_S = 10.0
_LOG = logging.getLogger(__name__)


def execute_here(
    job: dg.JobDefinition,
    instance: dg.DagsterInstance,
    *,
    run_config: Mapping[str, Any] | None = None,
    tags: Mapping[str, str] | None = None,
) -> dg.ExecuteInProcessResult:
    """Execute a job in this process; failures are reported in the result.

    Raises `KeyboardInterrupt` when the process was told to end during the job.
    """
    patient = job.as_ephemeral_job(resource_defs={}, input_values={}).with_executor_def(
        # `JobDefinition.execute_in_process` would use the executor that busy-waits.
        patient_in_process_executor
    )
    result = core_execute_in_process(
        run_config=run_config or {},
        job=InMemoryJob(job_def=patient),
        instance=instance,
        output_capturing_enabled=True,
        raise_on_error=False,
        run_tags={**(tags or {}), **process_tags(instance)},
    )
    # A signal that arrives between steps is noted by Dagster but has no effect.
    if received_signal() is not None or _was_interrupted(result):
        raise KeyboardInterrupt
    return result


def _was_interrupted(result: dg.ExecuteInProcessResult) -> bool:
    failures = [event.job_failure_data for event in result.all_events if event.is_job_failure]
    return any(data.failure_reason is RunFailureReason.UNEXPECTED_TERMINATION for data in failures)


@dg.executor(name="in_process", config_schema=IN_PROC_CONFIG)
def patient_in_process_executor(init_context: dg.InitExecutorContext) -> dg.Executor:
    """All steps in one process, one after the other; they are light or start workers."""
    retries = cast("Mapping[str, Mapping[Any, Any]]", init_context.executor_config["retries"])
    return PatientInProcessExecutor(RetryMode.from_config(retries) or RetryMode.ENABLED)


class PatientInProcessExecutor(dg.Executor):
    """Dagster's in-process executor, with pool slots claimed by `PatientClaims`."""

    def __init__(self, retries: RetryMode) -> None:
        self._retries = retries

    @property
    def retries(self) -> RetryMode:
        """How failed steps are retried."""
        return self._retries

    def execute(
        self, plan_context: PlanOrchestrationContext, execution_plan: ExecutionPlan
    ) -> Iterator[dg.DagsterEvent]:
        """Execute the plan in this process, and tag the run with the process."""
        plan_context.instance.add_run_tags(plan_context.run_id, process_tags(plan_context.instance))
        yield dg.DagsterEvent.engine_event(
            plan_context,
            f"Executing steps in process (pid: {os.getpid()})",
            EngineEventData.in_process(os.getpid(), execution_plan.step_keys_to_execute),
        )
        yield from ExecuteRunWithPlanIterable(
            execution_plan=plan_context.execution_plan,
            iterator=_execute_steps,
            execution_context_manager=PlanExecutionContextManager(
                job=plan_context.job,
                retry_mode=plan_context.retry_mode,
                execution_plan=plan_context.execution_plan,
                run_config=plan_context.run_config,
                dagster_run=plan_context.dagster_run,
                instance=plan_context.instance,
                raise_on_error=plan_context.raise_on_error,
                output_capture=plan_context.output_capture,
            ),
        )


def _execute_steps(
    job_context: PlanExecutionContext, execution_plan: ExecutionPlan
) -> Iterator[dg.DagsterEvent]:
    with PatientClaims(job_context.instance, job_context.dagster_run) as claims:
        yield from inner_plan_execution_iterator(job_context, execution_plan, claims)


class PatientClaims(InstanceConcurrencyContext):
    """Claims of pool slots by the steps of one run, with a limited and interruptible wait."""

    def __init__(
        self, instance: dg.DagsterInstance, dagster_run: dg.DagsterRun, limit_s: float = LONG_WAIT_S
    ) -> None:
        super().__init__(instance, dagster_run)
        self._storage_of_runs = instance
        self._limit_s = limit_s
        self._claims_lock = Path(instance.root_directory) / "pool_claims.lock"
        self._blocked_since: float | None = None
        self._announced = False
        self._looked_at = 0.0

    def claim(self, concurrency_key: str, step_key: str, step_priority: int = 0) -> bool:
        """Whether the step may start; a failed attempt takes `ATTEMPT_EVERY_S` seconds.

        Raises `ResourceError` when the pool did not become free within the limit, and Dagster's
        interrupt when the process was told to end.
        """
        # SQLite has no row locks: two simultaneous claims would both get the last slot.
        with exclusive_lock(self._claims_lock, "the claims of pool slots"):
            claimed = super().claim(concurrency_key, step_key, step_priority)
        if claimed:
            self._blocked_since, self._announced = None, False
            return True
        now = time.monotonic()
        if self._blocked_since is None:
            self._blocked_since = now
        waited_s = now - self._blocked_since
        with dg.raise_execution_interrupts():
            if waited_s > self._limit_s:
                raise ResourceError(
                    f"The pool {concurrency_key!r} was not free for {self._limit_s:.0f} s.",
                    f"It is held by {slot_holder(self._storage_of_runs, concurrency_key)}.",
                    "Wait for that run to end, or terminate it in the Dagster UI (`make ui`); then "
                    "run the same command again.",
                )
            if now - self._looked_at >= LOOK_FOR_DEAD_RUNS_EVERY_S:
                self._looked_at = now
                for run in end_dead_runs(self._storage_of_runs):
                    _LOG.warning(
                        "Ended run %s of %s: its process is gone.", run.run_id, run.job_name
                    )
            if waited_s >= ANNOUNCED_AFTER_S and not self._announced:
                self._announced = True
                _LOG.warning(
                    "Waiting for the pool %r (at most %.0f s), held by %s.",
                    concurrency_key,
                    self._limit_s,
                    slot_holder(self._storage_of_runs, concurrency_key),
                )
            time.sleep(ATTEMPT_EVERY_S)
        return False
