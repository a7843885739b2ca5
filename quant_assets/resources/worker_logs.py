"""Workers' logs and progress in Dagster's run log, through Dagster Pipes."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import dagster as dg


@contextmanager
def worker_environment(context: dg.AssetExecutionContext) -> Iterator[Mapping[str, str]]:
    """Yield the environment variables by which a worker reports to this step's log."""
    with dg.open_pipes_session(
        context=context,
        context_injector=dg.PipesEnvContextInjector(),
        message_reader=dg.PipesTempFileMessageReader(),
    ) as session:
        yield session.get_bootstrap_env_vars()
