"""The warehouse: one writer, many readers, no half-finished write."""

import multiprocessing
from pathlib import Path

import duckdb
import pytest

from quant_assets.errors import InputError, ResourceError
from quant_assets.warehouse.connection import Warehouse


def rows(warehouse: Warehouse) -> list[int]:
    with warehouse.read() as connection:
        return [n for (n,) in connection.execute("select n from raw.numbers order by n").fetchall()]


def add(path: str, numbers: list[int]) -> None:
    for number in numbers:
        with Warehouse(Path(path)).write() as connection:
            connection.execute("create table if not exists raw.numbers (n integer)").fetchall()
            connection.execute("insert into raw.numbers values (?)", [number]).fetchall()


@pytest.fixture
def warehouse(tmp_path: Path) -> Warehouse:
    return Warehouse(tmp_path / "w.duckdb")


def test_reading_before_any_load_says_what_to_do(warehouse: Warehouse):
    with pytest.raises(InputError, match="make demo"), warehouse.read():
        pass


def test_a_failed_write_changes_nothing(warehouse: Warehouse):
    add(str(warehouse.path), [1])
    with pytest.raises(ValueError, match="stop"), warehouse.write() as connection:
        connection.execute("insert into raw.numbers values (2)").fetchall()
        raise ValueError("stop")
    assert rows(warehouse) == [1]
    add(str(warehouse.path), [3])
    assert rows(warehouse) == [1, 3]


def test_a_reader_with_the_file_open_does_not_block_writers(warehouse: Warehouse):
    add(str(warehouse.path), [1])
    reader = duckdb.connect(str(warehouse.path), read_only=True)
    add(str(warehouse.path), [2])
    assert reader.execute("select count(*) from raw.numbers").fetchall() == [(1,)]
    reader.close()
    assert rows(warehouse) == [1, 2]


def test_two_writing_processes_lose_nothing(warehouse: Warehouse):
    context = multiprocessing.get_context("spawn")
    writers = [
        context.Process(target=add, args=(str(warehouse.path), list(range(start, start + 10))))
        for start in (0, 100)
    ]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
        assert writer.exitcode == 0
    assert rows(warehouse) == [*range(10), *range(100, 110)]


def test_waiting_for_another_writer_times_out(warehouse: Warehouse):
    add(str(warehouse.path), [1])
    impatient = Warehouse(warehouse.path, wait_s=0.2)
    with (
        warehouse.exclusive(),
        pytest.raises(ResourceError, match="Another process is using the warehouse"),
        impatient.write(),
    ):
        pass


def test_a_reader_cannot_write(warehouse: Warehouse):
    add(str(warehouse.path), [1])
    with warehouse.read() as connection, pytest.raises(duckdb.Error):
        connection.execute("insert into raw.numbers values (2)").fetchall()
