"""Dagster's own instance: its home under the data root, configured by the project's dagster.yaml."""

import contextlib
import logging
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import dagster as dg
from sqlalchemy.exc import DBAPIError

from quant_assets.atomic_files import write_text_atomically
from quant_assets.errors import ResourceError
from quant_assets.settings import PROJECT_ROOT, Settings

_LOG = logging.getLogger(__name__)


def dagster_environment(settings: Settings) -> dict[str, str]:
    """Create DAGSTER_HOME and return the environment variables that Dagster's commands need.

    Only its owner can open the folder: it holds runs, their configs and their output.
    """
    settings.dagster_home.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(PermissionError):  # the folder belongs to another user
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
    """The instance that the UI shows, for runs started by a command.

    Damaged files of its storage are renamed first. Raises `ResourceError` when the storage
    cannot be read or written: a full disk, a folder without write permission.
    """
    environment = dagster_environment(settings)
    for moved in set_damaged_storage_aside(settings.dagster_home):
        _LOG.warning(
            "Dagster's storage was damaged and starts empty, without the history of runs. Artifacts, "
            "records and the warehouse are not affected. The damaged file is now %s.",
            moved,
        )
    try:
        with dg.DagsterInstance.from_config(environment["DAGSTER_HOME"]) as instance:
            yield instance
    except DBAPIError as error:
        raise ResourceError(
            f"Dagster's storage in {settings.dagster_home} cannot be read or written.",
            f"SQLite reported: {error.orig}.",
            "Free some space or make the folder writable, then run the same command again; if it "
            "is damaged, delete the folder: only the history of runs is lost.",
        ) from error


def set_damaged_storage_aside(dagster_home: Path) -> list[Path]:
    """Rename the damaged SQLite files under `dagster_home`; returns their new paths."""
    moved = []
    for path in sorted(dagster_home.glob("**/*.db")):
        if not _is_damaged(path):
            continue
        aside = path.with_name(f"{path.name}.damaged-{time.strftime('%Y%m%dT%H%M%S')}")
        path.replace(aside)
        for companion in ("-wal", "-shm", "-journal"):
            path.with_name(path.name + companion).unlink(missing_ok=True)
        moved.append(aside)
    return moved


def _is_damaged(path: Path) -> bool:
    try:
        with contextlib.closing(sqlite3.connect(path, timeout=5)) as connection:
            (answer,) = connection.execute("pragma quick_check(1)").fetchone()
    except sqlite3.OperationalError:
        return False  # in use or not readable, which is not damage
    except sqlite3.DatabaseError:
        return True
    return bool(answer != "ok")
