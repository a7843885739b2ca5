"""Damage to Dagster's storage loses the history of runs but never fails a command."""

import logging
import os
import sqlite3
from pathlib import Path

import pytest

from quant_assets.errors import ResourceError
from quant_assets.resources.instance import dagster_instance
from quant_assets.settings import Settings
from quant_assets_tests.resources.pooled_run import pooled_job


@pytest.mark.parametrize("damage", ["garbled", "cut", "page"])
def test_damaged_files_are_renamed_and_the_instance_works(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: str
):
    settings = Settings(home=tmp_path)
    with dagster_instance(settings) as instance:
        run = instance.create_run_for_job(pooled_job(0, 0))
        assert instance.get_run_by_id(run.run_id)
    path = settings.dagster_home / "history" / "runs.db"
    content = path.read_bytes()
    for companion in path.parent.glob("runs.db-*"):
        companion.unlink()
    path.write_bytes(
        {
            "garbled": b"\xff" * len(content),
            "cut": content[: len(content) // 2],
            "page": content[:4096] + os.urandom(4096) + content[8192:],
        }[damage]
    )
    with caplog.at_level(logging.WARNING), dagster_instance(settings) as instance:
        run = instance.create_run_for_job(pooled_job(0, 0))
        assert instance.get_run_by_id(run.run_id)
    (aside,) = path.parent.glob("runs.db.damaged-*")
    assert str(aside) in caplog.text


def test_an_intact_storage_keeps_its_history(tmp_path: Path):
    settings = Settings(home=tmp_path)
    with dagster_instance(settings) as instance:
        run_id = instance.create_run_for_job(pooled_job(0, 0)).run_id
    with dagster_instance(settings) as instance:
        assert instance.get_run_by_id(run_id)
    assert not list(tmp_path.glob("**/*.damaged-*"))


def test_a_full_disk_is_one_clear_error(tmp_path: Path):
    """SQLite's page limit stands in for a full disk."""
    settings = Settings(home=tmp_path)
    with (
        pytest.raises(ResourceError, match="cannot be read or written") as raised,
        dagster_instance(settings) as instance,
        instance.run_storage.connect() as connection,  # type: ignore[attr-defined]
    ):
        pages = connection.exec_driver_sql("pragma page_count").scalar()
        connection.exec_driver_sql(f"pragma max_page_count = {pages}")
        connection.exec_driver_sql("create table filler (x blob)")
        connection.exec_driver_sql("insert into filler values (zeroblob(10000000))")
    assert "full" in raised.value.why
    with sqlite3.connect(settings.dagster_home / "history" / "runs.db") as connection:
        assert connection.execute("pragma quick_check").fetchone() == ("ok",)
