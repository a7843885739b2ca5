"""`quant-assets sql`: what a query may reach, how its answer is shown, and how it is stopped."""

import hashlib
import os
import signal
import threading
import time
from pathlib import Path

import duckdb
import pytest
from typer.testing import CliRunner

from quant_assets.cli import sql as command
from quant_assets.cli.app import app
from quant_assets.cli.output import LiteralConsole
from quant_assets.errors import InputError, ResourceError
from quant_assets.settings import Settings
from quant_assets.warehouse import read_query
from quant_assets.warehouse.connection import Warehouse
from quant_assets.warehouse.read_query import QueryAnswer, run_query


@pytest.fixture(scope="module")
def warehouse(tmp_path_factory: pytest.TempPathFactory) -> Warehouse:
    """A warehouse with a table and a view over it that uses JSON and time zones."""
    warehouse = Warehouse(tmp_path_factory.mktemp("home") / "warehouse" / "quant_assets.duckdb")
    with warehouse.write() as connection:
        connection.execute(
            "create table raw.numbers as select range as n, timestamptz '2026-05-04 12:00:00+02' "
            "as seen_at from range(3); create view raw.seen as select n, json_extract('[7]', '$[0]') as "
            "j, date_trunc('hour', seen_at) as hour from raw.numbers"
        ).fetchall()
    return warehouse


def ask(warehouse: Warehouse, query: str) -> QueryAnswer:
    with warehouse.read() as connection:
        return run_query(connection, query)


def test_values_are_exact(warehouse: Warehouse):
    asked = {
        "1.50::decimal(4, 2)": "1.50",
        "0.1 + 0.2": "0.3",
        "0.1::double + 0.2::double": "0.30000000000000004",
        "170141183460469231731687303715884105727::hugeint": "170141183460469231731687303715884105727",
        "interval 1 month": "1 month",
        "timestamp_ns '2020-01-01 00:00:00.123456789'": "2020-01-01 00:00:00.123456789",
        "timestamptz '2020-01-01 01:00:00+01'": "2020-01-01 00:00:00+00",
        "'infinity'::date": "infinity",
        "'\\xFF\\x00a'::blob": "\\xFF\\x00a",
        "[1, null]": "[1, NULL]",
        "{'a': 'x'}": "{'a': x}",
        "'a:x:0'": "a:x:0",
        "null": None,
        "''": "",
        "true": "true",
    }
    answer = ask(warehouse, f"select {', '.join(asked)}")
    assert answer.rows == [tuple(asked.values())]


@pytest.mark.parametrize(
    ("query", "rows"),
    [
        ("from raw.seen order by n limit 1", [("0", "7", "2026-05-04 10:00:00+00")]),
        ("select 1 as a, 2 as a -- the last line", [("1", "2")]),
        ("select 1; select 2;", [("2",)]),
        ("with x as (select 3) from x", [("3",)]),
        ("values (4)", [("4",)]),
        ("from (show tables) where name = 'none'", []),
        (
            "pivot raw.numbers on n using count(*) group by seen_at",
            [("2026-05-04 10:00:00+00", *"111")],
        ),
        ("select n from raw.numbers order by n desc", [("2",), ("1",), ("0",)]),
        ("select n from raw.numbers where false", []),
    ],
)
def test_statements_that_read_are_run(
    warehouse: Warehouse, query: str, rows: list[tuple[str, ...]]
):
    assert ask(warehouse, query).rows == rows


def test_columns_keep_their_names(warehouse: Warehouse):
    assert ask(warehouse, 'select 1 as a, 2 as a, 3 as "[b]"').columns == ["a", "a", "[b]"]


def test_a_plan_is_shown(warehouse: Warehouse):
    assert ask(warehouse, "explain analyze from raw.numbers").is_plan
    assert ask(warehouse, "EXPLAIN (format json) from raw.numbers").is_plan


ATTACKS = (
    "copy (select 1) to '{folder}/out.csv'",
    "copy (select 1) to '{file}' (use_tmp_file false)",
    "copy (select 1) to '{file}.wal'",
    "explain analyze copy (select 1) to '{file}.wal'",
    "explain /* */ analyze copy (select 1) to '{file}.wal'",
    "explain (analyze) copy (select 1) to '{file}.wal'",
    "select 1; copy (select 1) to '{file}.wal'",
    "copy (select 1) to '{file}.wal'; select 1",
    "export database '{folder}/all'",
    "import database '{folder}'",
    "attach '{folder}/new.duckdb' (read_write)",
    "attach '{file}' as again (read_write)",
    "attach ':memory:' as memory2",
    "detach quant_assets",
    "from read_csv('/etc/passwd')",
    "from '/etc/passwd'",
    "from read_text('/proc/self/environ')",
    "from read_blob('/etc/passwd')",
    "from read_parquet('{folder}/*.parquet')",
    "from glob('/*')",
    "from query('copy (select 1) to ''{file}.wal''')",
    "from read_json('http://127.0.0.1:9/')",
    "from frame",
    "select getenv('HOME')",
    "install httpfs",
    "load httpfs",
    "set memory_limit = '100GB'",
    "reset memory_limit",
    "set enable_external_access = true",
    "set variable a = 1",
    "pragma enable_profiling = 'json'",
    "call enable_logging(storage_path = '{folder}/log')",
    "from enable_logging(storage_path = '{folder}/log')",
    "create table raw.more (n integer)",
    "create temp table more (n integer)",
    "create secret (type s3)",
    "insert into raw.numbers (n) values (9)",
    "with x as (select 9) insert into raw.numbers (n) from x",
    "delete from raw.numbers",
    "update raw.numbers set n = 9",
    "drop view raw.seen",
    "prepare later as select 1",
    "begin",
    "checkpoint",
    "vacuum",
    "",
    ";",
    "-- nothing",
    "selec 1",
)  # fmt: skip


@pytest.mark.parametrize("attack", ATTACKS)
def test_statements_that_do_more_than_read_are_refused(warehouse: Warehouse, attack: str):
    folder = warehouse.path.parent
    frame = [1]  # a Python variable is not a table
    before = (hashlib.sha256(warehouse.path.read_bytes()).hexdigest(), sorted(folder.rglob("*")))
    with pytest.raises(InputError) as refused:
        ask(warehouse, attack.format(folder=folder, file=warehouse.path))
    assert refused.value.next_step and frame
    assert before == (
        hashlib.sha256(warehouse.path.read_bytes()).hexdigest(),
        sorted(folder.rglob("*")),
    )


ENDLESS = "select count(*) from range(100000000000) a, range(1000) b"


def test_ctrl_c_stops_a_query(warehouse: Warehouse):
    threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT)).start()
    started = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        ask(warehouse, ENDLESS)
    assert time.monotonic() - started < 60


def test_a_query_that_takes_too_long_is_stopped(warehouse: Warehouse):
    with duckdb.connect(str(warehouse.path), read_only=True) as connection:
        connection.execute("set max_execution_time = 200")
        with pytest.raises(ResourceError, match="took longer"):
            run_query(connection, ENDLESS)


def test_a_query_that_takes_too_much_memory_is_stopped(warehouse: Warehouse):
    with pytest.raises(ResourceError, match="more memory"):
        ask(warehouse, "select list(hash(range)) from range(2000000000)")


def test_large_answers_are_cut_and_marked(warehouse: Warehouse, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(read_query, "MAX_ROWS", 2500)
    answer = ask(warehouse, "from range(1000000000000)")
    assert len(answer.rows) == 2500 and answer.is_cut
    answer = ask(warehouse, "from range(2500)")
    assert len(answer.rows) == 2500 and not answer.is_cut
    ((long,),) = ask(warehouse, "select repeat('x', 3000000)").rows
    assert long is not None and len(long) < 1_100_000 and "2,000,000 more characters" in long


def test_the_command_shows_text_as_text(warehouse: Warehouse, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(
        command, "get_settings", lambda: Settings(home=warehouse.path.parent.parent)
    )
    query = (
        "select 'a:x:0', '[red]x[/red]', chr(27) || '[2J', 'b' || chr(10) || 'c', chr(8238), "
        "chr(7), null, 'NULL', repeat('y', 12000)"
    )
    shown = CliRunner().invoke(app, ["sql", query]).stdout
    row = shown.splitlines()[-2]
    cells = [cell.strip() for cell in row.strip("│").split("│")]
    assert cells == [
        "a:x:0", "[red]x[/red]", "\\x1b[2J", "b\\nc", "\\u202e", "\\x07", "NULL", "'NULL'",
        "y" * 12000,
    ]  # fmt: skip
    assert not [sign for sign in shown if ord(sign) < 32 and sign != "\n"]


def test_a_wide_row_is_shown_in_full_on_a_terminal(capsys: pytest.CaptureFixture[str]):
    console = LiteralConsole(width=40, force_terminal=True, color_system=None)
    columns = [f"column_{number}" for number in range(30)]
    row = tuple(f"value [b] {number} " + "z" * 50 for number in range(30))
    command._print(QueryAnswer(columns, [row], is_cut=False, is_plan=False), console)
    shown = capsys.readouterr().out
    assert all(name in shown and value in shown for name, value in zip(columns, row, strict=True))


def test_a_damaged_block_is_reported_as_damage(warehouse: Warehouse, tmp_path: Path):
    copy = Warehouse(tmp_path / "quant_assets.duckdb")
    content = bytearray(warehouse.path.read_bytes())
    with duckdb.connect(str(warehouse.path), read_only=True) as connection:
        ((block,),) = connection.execute(
            "select distinct block_id from pragma_storage_info('raw.numbers') "
            "where block_id >= 0 limit 1"
        ).fetchall()
    content[3 * 4096 + block * 262144 + 500] ^= 1
    copy.path.write_bytes(content)
    with pytest.raises(InputError, match="cannot be read"):
        ask(copy, "from raw.numbers")
