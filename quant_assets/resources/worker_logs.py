"""Workers' logs and progress in Dagster's run log, through Dagster Pipes."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import cached_property
from typing import Any, cast

import dagster as dg

from quant_assets.processes.session import WorkerSession


@contextmanager
def worker_session(context: dg.AssetExecutionContext) -> Iterator[WorkerSession]:
    """Yield a session whose workers report to this step's log.

    The Pipes session is opened when its variables are first read: a step that finds all its results made already
    starts no worker, and Dagster would warn that none was heard of.
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

        yield WorkerSession(variables=_Variables(open_session))


class _Variables(Mapping[str, str]):
    """Variables that are asked for when its variables are first read."""

    def __init__(self, ask: Callable[[], Mapping[str, str]]) -> None:
        self._ask = ask

    @cached_property
    def _values(self) -> Mapping[str, str]:
        return self._ask()

    def __getitem__(self, name: str) -> str:
        return self._values[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)


class _LogContext:
    """A step as a session sees it that only logs.

    A session that knows the step's asset makes Dagster insist on the asset's output, which there
    is none of when some partitions of the run were skipped.
    """

    has_assets_def = False

    def __init__(self, context: dg.AssetExecutionContext) -> None:
        self._context = context

    def __getattr__(self, name: str) -> Any:
        return getattr(self._context, name)
