"""The executor of all jobs: steps in one process, waiting for pools with patience and manners.

Dagster's own in-process executor spins at full load while a pool is taken, and cannot be
interrupted meanwhile. This one sleeps between its attempts, says what it waits for, ends runs whose
process is gone, gives up after a limit, and heeds signals.
"""

import logging
import os
import time
from collections.abc import Iterator, Mapping
from typing import Any, cast

import dagster as dg
from dagster._core.definitions.executor_definition import IN_PROC_CONFIG
from dagster._core.definitions.job_base import InMemoryJob
from dagster._core.errors import raise_execution_interrupts
from dagster._core.events import DagsterEvent, EngineEventData, RunFailureReason
from dagster._core.execution.api import ExecuteRunWithPlanIterable
from dagster._core.execution.context.system import PlanExecutionContext, PlanOrchestrationContext
from dagster._core.execution.context_creation_job import PlanExecutionContextManager
from dagster._core.execution.execute_in_process import core_execute_in_process
from dagster._core.execution.plan.execute_plan import inner_plan_execution_iterator
from dagster._core.execution.plan.instance_concurrency_context import InstanceConcurrencyContext
from dagster._core.execution.plan.plan import ExecutionPlan
from dagster._core.execution.retries import RetryMode
from dagster._core.executor.base import Executor

from quant_assets.errors import ResourceError
from quant_assets.host.locks import ANNOUNCED_AFTER_S, LONG_WAIT_S
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
    """Execute a job in this process; a failure is in the result.

    Raises `KeyboardInterrupt` when the process was told to end meanwhile.
    """
    patient = job.as_ephemeral_job(resource_defs={}, input_values={}).with_executor_def(
        # `JobDefinition.execute_in_process` insists on an executor that spins while it waits.
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
    # Between steps Dagster takes note of a signal and forgets it.
    if received_signal() is not None or _was_interrupted(result):
        raise KeyboardInterrupt
    return result


def _was_interrupted(result: dg.ExecuteInProcessResult) -> bool:
    failures = [event.job_failure_data for event in result.all_events if event.is_job_failure]
    return any(data.failure_reason is RunFailureReason.UNEXPECTED_TERMINATION for data in failures)


@dg.executor(name="in_process", config_schema=IN_PROC_CONFIG)
def patient_in_process_executor(init_context: dg.InitExecutorContext) -> Executor:
    """All steps in one process, one after the other; they are light, or start workers."""
    retries = cast("Mapping[str, Mapping[Any, Any]]", init_context.executor_config["retries"])
    return PatientInProcessExecutor(RetryMode.from_config(retries) or RetryMode.ENABLED)


class PatientInProcessExecutor(Executor):
    """Dagster's in-process executor, with claims that wait as `PatientClaims` does."""

    def __init__(self, retries: RetryMode) -> None:
        self._retries = retries

    @property
    def retries(self) -> RetryMode:
        """How failed steps are tried again."""
        return self._retries

    def execute(
        self, plan_context: PlanOrchestrationContext, execution_plan: ExecutionPlan
    ) -> Iterator[DagsterEvent]:
        """Execute the plan here; the run's tags then name this process."""
        plan_context.instance.add_run_tags(plan_context.run_id, process_tags(plan_context.instance))
        yield DagsterEvent.engine_event(
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
) -> Iterator[DagsterEvent]:
    with PatientClaims(job_context.instance, job_context.dagster_run) as claims:
        yield from inner_plan_execution_iterator(job_context, execution_plan, claims)


class PatientClaims(InstanceConcurrencyContext):
    """Claims of pool slots by the steps of one run."""

    def __init__(
        self, instance: dg.DagsterInstance, dagster_run: dg.DagsterRun, limit_s: float = LONG_WAIT_S
    ) -> None:
        super().__init__(instance, dagster_run)
        self._storage_of_runs = instance
        self._limit_s = limit_s
        self._blocked_since: float | None = None
        self._announced = False
        self._looked_at = 0.0

    def claim(self, concurrency_key: str, step_key: str, step_priority: int = 0) -> bool:
        """Whether the step may start; where it may not, this took `ATTEMPT_EVERY_S` seconds.

        Raises `ResourceError` when the pool was not free within the limit, and Dagster's interrupt
        when the process was told to end.
        """
        if super().claim(concurrency_key, step_key, step_priority):
            self._blocked_since, self._announced = None, False
            return True
        now = time.monotonic()
        if self._blocked_since is None:
            self._blocked_since = now
        waited_s = now - self._blocked_since
        with raise_execution_interrupts():
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
