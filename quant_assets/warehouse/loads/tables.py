"""Replacing and counting the rows of one raw table."""

from collections.abc import Iterable, Mapping
from typing import Any

import duckdb
import pandas as pd

from quant_assets.errors import InputError


def replace_rows(
    connection: duckdb.DuckDBPyConnection, table: str, rows: Iterable[Mapping[str, Any]]
) -> int:
    """Replace the content of `raw.<table>` by `rows`; return its row count.

    Raises `InputError` for a value that does not fit its column.
    """
    return replace_frames(connection, table, [pd.DataFrame(list(rows))])


def replace_frames(
    connection: duckdb.DuckDBPyConnection, table: str, frames: Iterable[pd.DataFrame]
) -> int:
    """Replace the content of `raw.<table>` by the rows of `frames`, one after the other.

    Returns the table's row count; raises `InputError` for a value that does not fit its column.
    """
    connection.execute(f"delete from raw.{table}").fetchall()  # noqa: S608
    for frame in frames:
        if frame.empty:
            continue
        connection.register("incoming_rows", frame)
        try:
            insert = f"insert into raw.{table} by name select * from incoming_rows"  # noqa: S608
            connection.execute(insert).fetchall()
        except (duckdb.DataError, duckdb.IntegrityError) as error:
            raise InputError(
                f"The table raw.{table} cannot be loaded.",
                f"A record has a value that does not fit its column: {error}",
                "Correct that record, or move its file away.",
            ) from error
        finally:
            connection.unregister("incoming_rows")
    return count_rows(connection, table)


def count_rows(connection: duckdb.DuckDBPyConnection, table: str) -> int:
    """The number of rows in `raw.<table>`."""
    # A result must be read to its end before the connection runs the next statement.
    return int(connection.execute(f"select count(*) from raw.{table}").fetchall()[0][0])  # noqa: S608
