"""The speed model is checked against its measured points."""

import shutil
from pathlib import Path

import duckdb
import pytest

from quant_assets.speed.validation import check_speed_model
from quant_assets.warehouse.connection import Warehouse


def test_runs_are_predicted_by_the_others(marts_warehouse: Warehouse):
    with marts_warehouse.read() as connection:
        found = check_speed_model(connection)
    assert (found.points, found.predicted_points) == (7, 6)  # one run alone on a GPU
    # Efficiencies .4 .5 .5 .6 .6 .7: the lowest is predicted by the median of the others, .6.
    assert found.worst_error == pytest.approx(0.6 / 0.4 - 1)
    assert found.passed


def test_a_speed_beyond_the_roofline_is_a_problem(marts_warehouse: Warehouse, tmp_path: Path):
    copy = tmp_path / marts_warehouse.path.name
    shutil.copyfile(marts_warehouse.path, copy)
    with duckdb.connect(str(copy)) as connection:
        connection.execute(
            "update raw.benchmark_runs set decode_tokens_per_s = 5 where device = 'cpu'"
        )
        found = check_speed_model(connection)
    assert not found.passed
    assert "peaks cannot be right" in found.problems[0]
