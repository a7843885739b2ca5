"""Workers' logs and progress in Dagster's run log, through Dagster Pipes."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, cast

import dagster as dg


@contextmanager
def worker_environment(context: dg.AssetExecutionContext) -> Iterator[Mapping[str, str]]:
    """Yield the environment variables by which a worker reports to this step's log."""
    with dg.open_pipes_session(
        context=cast("dg.AssetExecutionContext", _LogContext(context)),
        context_injector=dg.PipesEnvContextInjector(),
        message_reader=dg.PipesTempFileMessageReader(),
    ) as session:
        yield session.get_bootstrap_env_vars()


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
