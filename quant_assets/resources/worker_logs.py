"""Logs of workers in Dagster's run log through Dagster Pipes, and their progress from their events."""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import cached_property
from typing import Any, Final, cast

import dagster as dg

from quant_assets.processes.job_tracker import Clock, JobTracker, StepProgress
from quant_assets.processes.protocol import Event
from quant_assets.processes.session import WorkerSession

PROGRESS_INTERVAL_S: Final = 10.0


@contextmanager
def worker_session(context: dg.AssetExecutionContext) -> Iterator[WorkerSession]:
    """Yield a session whose workers report to this step's log.

    The Pipes session opens when its variables are first read: a step that reuses all its results
    starts no worker, and Dagster would warn that no messages arrived. Progress is logged when a step
    begins and ends, and every `PROGRESS_INTERVAL_S` in between.
    """
    with ExitStack() as stack:

        def open_session() -> Mapping[str, str]:
            session = stack.enter_context(
                dg.open_pipes_session(
                    context=cast("dg.AssetExecutionContext", _LogContext(context)),
                    context_injector=dg.PipesEnvContextInjector(),
                    message_reader=dg.PipesTempFileMessageReader(),
                )
            )
            return session.get_bootstrap_env_vars()

        progress = ProgressLog(context.log.info)
        yield WorkerSession(progress.show, variables=_Variables(open_session))


class ProgressLog:
    """Writes a worker's progress as lines: step, percentage, time left and memory."""

    def __init__(self, write_line: Callable[[str], None], *, clock: Clock = time.monotonic) -> None:
        self._write_line = write_line
        self._clock = clock
        self._tracker = JobTracker(clock)
        self._logged: StepProgress | None = None
        self._logged_at = 0.0
        self._finished = False

    def show(self, event: Event) -> None:
        """Write a line if the event begins or ends a step, or the last line is old."""
        step = self._tracker.observe(event)
        if step is None:
            return
        now = self._clock()
        begins = step is not self._logged
        ends = step.finished and (begins or not self._finished)
        if begins or ends or now - self._logged_at >= PROGRESS_INTERVAL_S:
            self._logged, self._logged_at, self._finished = step, now, step.finished
            self._write_line(self._tracker.line(step))


class _Variables(Mapping[str, str]):
    """Environment variables that are computed when first read."""

    def __init__(self, compute: Callable[[], Mapping[str, str]]) -> None:
        self._compute = compute

    @cached_property
    def _values(self) -> Mapping[str, str]:
        return self._compute()

    def __getitem__(self, name: str) -> str:
        return self._values[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)


class _LogContext:
    """A step's context without its asset, for a session that only logs.

    With the asset, Dagster would require its output, which is absent when partitions of the run
    were skipped.
    """

    has_assets_def = False

    def __init__(self, context: dg.AssetExecutionContext) -> None:
        self._context = context

    def __getattr__(self, name: str) -> Any:
        return getattr(self._context, name)
