"""Parquet files: every column cast to text by DuckDB."""

from collections.abc import Iterator
from pathlib import Path

import duckdb
from duckdb import DuckDBPyConnection

from quant_assets.duckdb_files import READ_OPTIONS, readable
from quant_assets.errors import InputError
from quant_assets.listings.headers import ColumnMap, require_columns
from quant_assets.listings.reading.inspection import FileFacts
from quant_assets.listings.reading.records import (
    WIDE_COLUMNS,
    Record,
    Rejected,
    Target,
    collect_rows,
    keep_rows,
    make_record,
    select_columns,
)


def parse_parquet(
    connection: DuckDBPyConnection, path: Path, facts: FileFacts, target: Target
) -> None:
    """Parse a Parquet file; raises `InputError` when it is damaged or has no title column."""
    del facts
    source = f"read_parquet(?, {READ_OPTIONS})"
    try:
        with readable(path) as pattern:
            described = connection.execute(f"DESCRIBE FROM {source}", [pattern])
            header = [row[0] for row in described.fetchall()]
            columns = require_columns(header, path)
            names = [f"c{index}" for index in range(len(header))]
            texts = ", ".join(f"CAST({name} AS VARCHAR) AS {name}" for name in names)
            rows = f"SELECT {texts} FROM {source} AS t({', '.join(names)})"  # noqa: S608, generated names
            if len(header) < WIDE_COLUMNS:
                connection.execute(
                    "CREATE TEMP TABLE parsed AS SELECT row_number() OVER () AS line_number, "  # noqa: S608, generated names
                    f"{select_columns(columns)} FROM ({rows})",
                    [*columns.others, pattern],
                ).fetchall()
                keep_rows(connection, columns, [], target)
                return
            with connection.cursor() as reader:
                reader.execute(rows, [pattern])
                collect_rows(connection, _fetched_rows(reader, columns), columns, target)
    except (duckdb.Error, UnicodeDecodeError) as error:
        raise InputError(
            f"The file {path} cannot be read as Parquet.",
            str(error).partition("\n")[0],
            "Export it again, or provide the listings as CSV or JSON.",
        ) from error


def _fetched_rows(reader: DuckDBPyConnection, columns: ColumnMap) -> Iterator[Record | Rejected]:
    number = 0
    while rows := reader.fetchmany(WIDE_COLUMNS):
        for row in rows:
            number += 1
            yield make_record(number, columns, dict(enumerate(row)))
