"""The published file is complete and checked, whatever happens to a writer or to the file."""

import contextlib
import datetime
import logging
import multiprocessing
import os
import resource
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import duckdb
import pytest

from quant_assets.errors import CheckFailed, InputError, ResourceError
from quant_assets.settings import Settings
from quant_assets.speed.host_peaks import RecordedPeaks
from quant_assets.warehouse.connection import Warehouse
from quant_assets.warehouse.queries import row_counts
from quant_assets.warehouse.rebuild import warehouse_of

MARTS = "create schema if not exists marts; create or replace table marts.answers as select 42 as n"


@pytest.fixture
def warehouse(tmp_path: Path) -> Warehouse:
    """A published warehouse with a row of raw data and a mart."""
    warehouse = Warehouse(tmp_path / "warehouse" / "w.duckdb", seed=seed)
    with warehouse.write() as connection:
        connection.execute(MARTS).fetchall()
    return warehouse


def seed(connection: duckdb.DuckDBPyConnection) -> None:
    """Load the only record."""
    connection.execute("insert into raw.gpus (canonical_name) values ('A')").fetchall()


def query(warehouse: Warehouse, text: str) -> list[tuple[object, ...]]:
    with warehouse.read() as connection:
        return connection.execute(text).fetchall()


def lose_the_build_folder(warehouse: Warehouse) -> None:
    shutil.rmtree(warehouse.path.parent / "build")


def fail_in_dbt(warehouse: Warehouse) -> None:
    with contextlib.suppress(RuntimeError), warehouse.exclusive() as build:
        with duckdb.connect(str(build)) as connection:
            connection.execute("drop table marts.answers; delete from raw.gpus").fetchall()
        raise RuntimeError("dbt failed")


def killed_inside(path: Path) -> None:
    with Warehouse(path).exclusive() as build:
        with duckdb.connect(str(build)) as connection:
            connection.execute("drop table marts.answers; delete from raw.gpus").fetchall()
        os.kill(os.getpid(), signal.SIGKILL)


def kill_between_writing_and_publishing(warehouse: Warehouse) -> None:
    process = multiprocessing.get_context("spawn").Process(
        target=killed_inside, args=(warehouse.path,)
    )
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert any((warehouse.path.parent / "build").rglob("*.duckdb")), "the build file is left behind"


def leave_an_old_build_file(warehouse: Warehouse) -> None:
    (warehouse.path.parent / "build" / warehouse.path.name).write_bytes(b"garbled")


def leave_a_log_of_another_program(warehouse: Warehouse) -> None:
    warehouse.path.with_name(f"{warehouse.path.name}.wal").write_bytes(b"garbled" * 100)


@pytest.mark.parametrize(
    "accident",
    [
        lose_the_build_folder,
        fail_in_dbt,
        kill_between_writing_and_publishing,
        leave_an_old_build_file,
        leave_a_log_of_another_program,
    ],
)
def test_the_next_writer_starts_from_the_published_file(
    warehouse: Warehouse, accident: Callable[[Warehouse], None]
):
    accident(warehouse)
    with warehouse.write() as connection:
        connection.execute("insert into raw.gpus (canonical_name) values ('B')").fetchall()
    assert query(warehouse, "select n from marts.answers") == [(42,)]
    assert query(warehouse, "select canonical_name from raw.gpus order by 1") == [("A",), ("B",)]
    left = {path.name for path in warehouse.path.parent.rglob("*") if path.is_file()}
    assert left == {warehouse.path.name, f"{warehouse.path.name}.lock"}


def test_a_state_that_lacks_a_mart_is_not_published(warehouse: Warehouse):
    with (
        pytest.raises(CheckFailed, match=r"lacks marts\.answers"),
        warehouse.write() as connection,
    ):
        connection.execute("drop table marts.answers").fetchall()
    assert query(warehouse, "select n from marts.answers") == [(42,)]


def test_a_build_that_cannot_be_read_is_not_published(warehouse: Warehouse):
    with pytest.raises(ResourceError, match="the published file is unchanged"):  # noqa: SIM117
        with warehouse.exclusive() as build:
            build.write_bytes(flipped(build.read_bytes()))
    assert query(warehouse, "select n from marts.answers") == [(42,)]


def flipped(content: bytes) -> bytes:
    """The file with one bit flipped in each block: headers, catalog, tables."""
    damaged = bytearray(content)
    for block in range(3 * 4096, len(damaged), 262144):
        damaged[block + 100] ^= 1
    return bytes(damaged)


def sqlite(_: bytes) -> bytes:
    return b"SQLite format 3\x00" + bytes(4096)


def other_version(content: bytes) -> bytes:
    assert content[8:12] == b"DUCK"
    return content[:12] + (99_999).to_bytes(8, "little") + content[20:]


def foreign(_: bytes) -> bytes:
    with Warehouse(Path(os.environ["FOREIGN_FOLDER"]) / "f.duckdb").exclusive() as build:
        with duckdb.connect(str(build)) as connection:
            connection.execute("drop schema raw cascade; create table diary (n int)").fetchall()
        return build.read_bytes()


@pytest.mark.parametrize(
    "damage",
    [
        lambda _: b"",
        lambda _: b"garbled" * 5000,
        lambda content: content[: len(content) // 2],
        lambda content: content[:5000],
        flipped,
        sqlite,
        other_version,
        foreign,
    ],
    ids=["empty", "garbled", "half", "header", "bits", "sqlite", "version", "foreign"],
)
def test_a_damaged_file_is_an_error_for_readers_and_rebuilt_by_the_next_writer(
    warehouse: Warehouse,
    damage: Callable[[bytes], bytes],
    caplog: pytest.LogCaptureFixture,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setenv("FOREIGN_FOLDER", str(tmp_path / "foreign"))
    damaged = damage(warehouse.path.read_bytes())
    warehouse.path.write_bytes(damaged)
    with pytest.raises(InputError, match="make demo") as refused:
        query(warehouse, "select n from marts.answers")
    assert str(warehouse.path) in str(refused.value) or damage is foreign
    with caplog.at_level(logging.WARNING), warehouse.write():
        pass
    assert "rebuilt from the records" in caplog.text and str(warehouse.path) in caplog.text
    assert query(warehouse, "select canonical_name from raw.gpus") == [("A",)]
    assert warehouse.path.with_name("w.duckdb.damaged").read_bytes() == damaged
    with pytest.raises(InputError, match="marts have not been built"):
        query(warehouse, "select n from marts.answers")


def test_a_folder_with_the_files_name_is_left_alone(tmp_path: Path):
    warehouse = Warehouse(tmp_path / "w.duckdb")
    (warehouse.path / "kept").mkdir(parents=True)
    with pytest.raises(InputError, match="is not a file"), warehouse.write():
        pass
    with pytest.raises(InputError, match="is not a file"), warehouse.read():
        pass
    assert (warehouse.path / "kept").is_dir()


PEAKS = RecordedPeaks(
    cpu_name="c", threads=2, triad_gb_s=10, read_gb_s=12, matmul_gflop_s=100, contended=False,
    library_versions={}, measured_at=datetime.datetime(2026, 5, 4, tzinfo=datetime.UTC),
)  # fmt: skip


def test_a_lost_file_is_rebuilt_from_the_records_by_any_writer(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    settings = Settings(home=tmp_path)
    (settings.results / "hosts").mkdir(parents=True)
    (settings.results / "hosts" / "c.json").write_text(PEAKS.model_dump_json())
    (settings.results / "q4_20260504.json").write_text("[{")
    for _ in range(2):
        warehouse = warehouse_of(settings)
        with caplog.at_level(logging.WARNING), warehouse.write():
            pass
        assert query(warehouse, "select threads from raw.hosts") == [(2,)]
        assert query(warehouse, "select count(*) > 50 from raw.gpus") == [(True,)]
        assert query(warehouse, "select count(*) from raw.benchmark_runs") == [(0,)]
        assert "raw.benchmark_runs is empty" in caplog.text
        assert "q4_20260504.json" in caplog.text
        settings.warehouse.unlink()


def write_beyond(path: Path, limit: int) -> None:
    """Write 8 MB while no file may grow beyond `limit` bytes, as on a full disk."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    with (
        pytest.raises(ResourceError, match="the published file is unchanged"),
        Warehouse(path).write() as connection,
    ):
        connection.execute(
            "create table raw.large as select hash(range) as n from range(1000000)"
        ).fetchall()
    os._exit(42)


@pytest.mark.parametrize("limit", [1_000, 2**20, 4 * 2**20], ids=["copy", "start", "load"])
def test_a_full_disk_leaves_the_published_file_unchanged(warehouse: Warehouse, limit: int):
    before = warehouse.path.read_bytes()
    process = multiprocessing.get_context("spawn").Process(
        target=write_beyond, args=(warehouse.path, limit)
    )
    process.start()
    process.join()
    assert process.exitcode == 42
    assert warehouse.path.read_bytes() == before
    assert not [path for path in (warehouse.path.parent / "build").iterdir() if path.is_dir()]


def test_a_folder_that_cannot_be_created_is_reported(tmp_path: Path):
    (tmp_path / "home").write_text("a file")
    warehouse = Warehouse(tmp_path / "home" / "warehouse" / "w.duckdb")
    with pytest.raises(ResourceError, match="cannot be"), warehouse.write():
        pass


def test_a_view_of_an_earlier_version_is_dropped(warehouse: Warehouse) -> None:
    with duckdb.connect(str(warehouse.path)) as connection:
        connection.execute(
            "create schema intermediate; create view intermediate.int_speed_calibration as "
            "select vendor from raw.gpus"
        ).fetchall()
    with warehouse.write():
        pass
    with warehouse.read() as connection:
        assert "raw.gpus" in row_counts(connection)
        assert "intermediate.int_speed_calibration" not in row_counts(connection)
