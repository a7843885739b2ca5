"""`quant-assets ui`: the Dagster UI on localhost."""

import os
import sys
from typing import Annotated

import typer

from quant_assets.cli.output import print_line
from quant_assets.settings import get_settings


def ui(
    port: Annotated[int, typer.Option(help="Port on 127.0.0.1.", min=1, max=65535)] = 3000,
) -> None:
    """Open the Dagster UI: graph, runs, schedules and sensors, on http://127.0.0.1:PORT."""
    # Importing Dagster takes seconds; the other commands must not pay for it.
    from quant_assets.resources.instance import dagster_environment

    os.environ.update(dagster_environment(get_settings()))
    print_line(f"Dagster UI: http://127.0.0.1:{port} (Ctrl-C ends it)", err=True)
    command = [sys.executable, "-m", "quant_assets.webserver.server", str(port)]
    os.execv(sys.executable, command)  # noqa: S606
