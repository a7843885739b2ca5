"""DAGSTER_HOME is private to its owner."""

import stat
from pathlib import Path

from quant_assets.resources.instance import dagster_environment
from quant_assets.settings import Settings


def test_dagsters_home_is_private(tmp_path: Path):
    settings = Settings(home=tmp_path / "home")
    dagster_environment(settings)
    assert stat.S_IMODE(settings.dagster_home.stat().st_mode) == 0o700
