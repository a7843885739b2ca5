"""`quant-assets ui`: the Dagster UI on localhost."""

import os
import socket
import sys
from typing import Annotated

import typer
from pydantic import BaseModel

from quant_assets.cli.presentation import Reply
from quant_assets.cli.verbosity import notify
from quant_assets.errors import ResourceError
from quant_assets.processes.guarded import become_guarded
from quant_assets.settings import get_settings

SHUTDOWN_S = 3.0
"""How long webserver and daemon may take to shut down by themselves."""


class UiDocument(BaseModel):
    """Where the Dagster UI listens once it has started; printed before it starts."""

    url: str
    port: int


def ui(
    port: Annotated[int, typer.Option(help="Port on 127.0.0.1.", min=1, max=65535)] = 3000,
) -> Reply[UiDocument]:
    """Serve the Dagster UI (graph, runs, schedules, sensors) on http://127.0.0.1:PORT."""
    _require_free(port)
    # Importing Dagster takes seconds; the other commands must not pay for it.
    from quant_assets.resources.instance import dagster_environment, dagster_instance
    from quant_assets.resources.run_processes import end_dead_runs

    settings = get_settings()
    os.environ.update(dagster_environment(settings))
    with dagster_instance(settings) as instance:
        for run in end_dead_runs(instance):
            notify(f"closed run {run.run_id} of {run.job_name}: its process is gone")
    command = [sys.executable, "-m", "quant_assets.webserver.server", str(port)]
    # Dagster's own children outlive it when it is killed.
    return Reply(
        UiDocument(url=f"http://127.0.0.1:{port}", port=port),
        lambda document: notify(f"Dagster UI: {document.url} (Ctrl-C stops it)"),
        afterwards=lambda: become_guarded(command, grace_s=SHUTDOWN_S),
    )


def _require_free(port: int) -> None:
    """Raise `ResourceError` if the port is taken, before Dagster starts in vain."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            raise ResourceError(
                f"The UI cannot listen on port {port}.",
                f"{error.strerror}.",
                "Stop whatever uses the port, perhaps another UI, or choose another one with --port.",
            ) from error
