"""Ad-hoc queries: they only read, can be interrupted, and return exact values.

DuckDB formats the values itself: Python has no type for nanoseconds, months or infinite dates. The
connection (`Warehouse.read`) keeps a query away from other files, the network and the settings, but
it could still write to the write-ahead log of its own database; so only statements that read are run.
"""

import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple, TypeVar

import duckdb

from quant_assets.errors import InputError, ResourceError
from quant_assets.warehouse.database_file import is_damage
from quant_assets.warehouse.read_only import MEMORY_LIMIT, QUERY_LIMIT_S

MAX_ROWS = 100_000
MAX_CHARACTERS = 50_000_000
MAX_CELL_CHARACTERS = 1_000_000

_BATCH_ROWS = 1000
_EXPLAIN = re.compile(r"\s*explain\s+(?:analyze\s+|\([^()]*\)\s*)?", re.IGNORECASE)
_PIVOT = re.compile(r"\s*pivot(?:_wider)?\b", re.IGNORECASE)
_Returned = TypeVar("_Returned")


class QueryAnswer(NamedTuple):
    """Columns, and rows of text (None for NULL); `types` are DuckDB's of the columns.

    `is_cut`: rows are missing at the end. `is_plan`: the answer to EXPLAIN, a drawing, not values,
    without types.
    """

    columns: list[str]
    rows: list[tuple[str | None, ...]]
    is_cut: bool
    is_plan: bool
    types: tuple[str, ...] = ()


def run_query(connection: duckdb.DuckDBPyConnection, query: str) -> QueryAnswer:
    """Run a query in a thread, so that Ctrl-C can stop it; return the answer of its last statement.

    Returns at most `MAX_ROWS` rows and `MAX_CHARACTERS` characters; a value longer than
    `MAX_CELL_CHARACTERS` is cut and ends with the number of characters that are missing. Raises
    `InputError` for a query that is wrong or does anything but read, `ResourceError` for one that
    takes too long or too much memory, and `duckdb.Error` when the file is damaged.
    """
    try:
        return _interruptible(connection, lambda: _answer(connection, query))
    except duckdb.InterruptException as error:
        raise ResourceError(
            "The query was stopped.",
            f"It took longer than {QUERY_LIMIT_S} s.",
            "Query less, or run it with the duckdb command on a copy of the file.",
        ) from error
    except duckdb.OutOfMemoryException as error:
        raise ResourceError(
            "The query was stopped.",
            f"It needs more memory than {MEMORY_LIMIT}.",
            "Query less, or run it with the duckdb command on a copy of the file.",
        ) from error
    except duckdb.Error as error:
        if is_damage(error):
            raise
        raise InputError(
            "The query failed.",
            str(error),
            "Correct it; `quant-assets sql 'show all tables'` lists tables and columns.",
        ) from error


def _interruptible(
    connection: duckdb.DuckDBPyConnection, work: Callable[[], _Returned]
) -> _Returned:
    """Do `work` on the connection in another thread while this one handles signals."""
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(work)
        try:
            return future.result()
        except KeyboardInterrupt:
            connection.interrupt()
            raise


def _answer(connection: duckdb.DuckDBPyConnection, query: str) -> QueryAnswer:
    statements = connection.extract_statements(query)
    if not statements or not all(_reads(connection, statement) for statement in statements):
        raise InputError(
            "The query was not run." if statements else "The query is empty.",
            "Only statements that read are run: SELECT, FROM, WITH, VALUES, SHOW, DESCRIBE, SUMMARIZE, "
            "PIVOT, and EXPLAIN of any of these.",
            "To change the warehouse, change the files that it is built from and refresh it.",
        )
    last = statements[-1]
    text = last.query.strip().rstrip(";")
    if last.type == duckdb.StatementType.EXPLAIN:
        answer = connection.execute(text)
        columns = [str(column[0]) for column in answer.description or []]
        plan = [tuple(map(str, row)) for row in answer.fetchall()]
        return QueryAnswer(columns, [*plan], is_cut=False, is_plan=True)
    relation = connection.sql(text)
    columns, types = list(relation.columns), tuple(map(str, relation.types))
    # A line feed ends a comment on the last line of the query.
    connection.execute(f"select cast(columns(*) as varchar) from (\n{text}\n)")  # noqa: S608
    rows, is_cut = _fetch(connection)
    return QueryAnswer(columns, rows, is_cut, is_plan=False, types=types)


def _reads(connection: duckdb.DuckDBPyConnection, statement: duckdb.Statement) -> bool:
    """Whether a statement only reads."""
    if statement.type == duckdb.StatementType.SELECT:
        return True
    if statement.type == duckdb.StatementType.MULTI:
        return _PIVOT.match(statement.query) is not None
    explained = _EXPLAIN.sub("", statement.query, count=1)
    if statement.type != duckdb.StatementType.EXPLAIN or explained == statement.query:
        return False
    # EXPLAIN ANALYZE runs the statement.
    inner = connection.extract_statements(explained)
    return len(inner) == 1 and inner[0].type == duckdb.StatementType.SELECT


def _fetch(connection: duckdb.DuckDBPyConnection) -> tuple[list[tuple[str | None, ...]], bool]:
    rows: list[tuple[str | None, ...]] = []
    characters = 0
    while batch := connection.fetchmany(_BATCH_ROWS):
        for row in batch:
            if len(rows) == MAX_ROWS or characters > MAX_CHARACTERS:
                return rows, True
            cells = tuple(_bounded(cell) for cell in row)
            characters += sum(len(cell) for cell in cells if cell is not None)
            rows.append(cells)
    return rows, False


def _bounded(cell: str | None) -> str | None:
    if cell is None or len(cell) <= MAX_CELL_CHARACTERS:
        return cell
    return f"{cell[:MAX_CELL_CHARACTERS]}... ({len(cell) - MAX_CELL_CHARACTERS:,} more characters)"
