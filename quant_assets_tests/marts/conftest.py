"""A data root with marts that dbt built."""

from pathlib import Path

import pytest

from quant_assets.warehouse.connection import Warehouse
from quant_assets_tests.marts.marts_world import dbt, fill


@pytest.fixture(scope="session")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data root whose marts have been built."""
    root = tmp_path_factory.mktemp("marts")
    warehouse = Warehouse(root / "warehouse" / "quant_assets.duckdb")
    with warehouse.write() as connection:
        fill(connection)
    with warehouse.exclusive() as build_path:
        done = dbt(build_path, root, "build")
    assert done.returncode == 0, done.stdout
    return root


@pytest.fixture(scope="session")
def warehouse(home: Path) -> Warehouse:
    return Warehouse(home / "warehouse" / "quant_assets.duckdb")
