"""Dagster's own instance: its home under the data root, configured by the project's dagster.yaml."""

import contextlib
from collections.abc import Iterator
from contextlib import contextmanager

import dagster as dg

from quant_assets.atomic_files import write_text_atomically
from quant_assets.settings import PROJECT_ROOT, Settings


def dagster_environment(settings: Settings) -> dict[str, str]:
    """Make DAGSTER_HOME and return the environment variables that Dagster's commands need.

    Nobody else of the machine can open it: it holds runs, their configs and all that they printed.
    """
    settings.dagster_home.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(PermissionError):  # a folder that another user shares
        settings.dagster_home.chmod(0o700)
    configuration = (PROJECT_ROOT / "dagster.yaml").read_text(encoding="utf-8")
    write_text_atomically(settings.dagster_home / "dagster.yaml", configuration)
    return {
        "DAGSTER_HOME": str(settings.dagster_home.resolve()),
        "QUANT_ASSETS_HOME": str(settings.home.resolve()),
        "DAGSTER_DISABLE_TELEMETRY": "yes",
        "DO_NOT_TRACK": "1",
    }


@contextmanager
def dagster_instance(settings: Settings) -> Iterator[dg.DagsterInstance]:
    """The instance that the UI shows, for runs started by a command."""
    environment = dagster_environment(settings)
    with dg.DagsterInstance.from_config(environment["DAGSTER_HOME"]) as instance:
        yield instance
