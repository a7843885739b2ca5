"""Logs and progress of workers in Dagster's run log, through Dagster Pipes."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import cached_property
from typing import Any, cast

import dagster as dg

from quant_assets.processes.session import WorkerSession


@contextmanager
def worker_session(context: dg.AssetExecutionContext) -> Iterator[WorkerSession]:
    """Yield a session whose workers report to this step's log.

    The Pipes session opens when its variables are first read: a step that reuses all its results
    starts no worker, and Dagster would warn that no messages arrived.
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
