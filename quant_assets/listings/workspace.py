"""DuckDB as the listings use it: in-memory connections, and a scratch workspace per run."""

import itertools
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import duckdb
import pandas as pd
from duckdb import DuckDBPyConnection

from quant_assets.duckdb_files import READ_OPTIONS, display_name, exact_pattern, writable
from quant_assets.errors import ResourceError

MEMORY_LIMIT = "1.4GB"
"""Memory that DuckDB uses before it spills to disk; a whole market fits on a small machine."""
ROWS_IN_MEMORY = 1_000_000
"""Larger tables are kept as Parquet files: a row of a stage takes about 500 bytes in memory."""


def connect_in_memory(config: Mapping[str, str] | None = None) -> DuckDBPyConnection:
    """An in-memory DuckDB connection without the progress bar, which goes to standard output."""
    connection = duckdb.connect(":memory:", config=dict(config or {}))
    connection.execute("SET enable_progress_bar = false").fetchall()
    return connection


@dataclass(frozen=True)
class Workspace:
    """A DuckDB connection with a temporary folder for data that does not fit in memory."""

    connection: DuckDBPyConnection
    folder: tempfile.TemporaryDirectory[str]
    _numbers: "itertools.count[int]" = field(default_factory=itertools.count)

    @classmethod
    def create(cls) -> Self:
        """A new, empty workspace."""
        folder = tempfile.TemporaryDirectory(prefix="quant_assets_listings_")
        connection = connect_in_memory(
            {"temp_directory": folder.name, "memory_limit": MEMORY_LIMIT}
        )
        return cls(connection, folder)

    def path(self, name: str) -> Path:
        """A path in the workspace's folder."""
        return Path(self.folder.name) / name

    def new_name(self, stem: str) -> str:
        """A table name that is not yet used in the workspace."""
        return f"{stem}_{next(self._numbers)}"

    def query(
        self, sql: str, parameters: Sequence[object] | Mapping[str, object] = ()
    ) -> list[tuple[Any, ...]]:
        """Run one statement with bound parameters and return its rows."""
        with clear_resource_errors(self.folder.name):
            return self.connection.execute(sql, parameters or None).fetchall()

    def add_frame(self, stem: str, frame: pd.DataFrame) -> str:
        """Copy a frame into a new table and return the table's name."""
        name = self.new_name(stem)
        self.connection.register("incoming_frame", frame)
        self.query(f"CREATE TABLE {name} AS SELECT * FROM incoming_frame")  # noqa: S608, own names
        self.connection.unregister("incoming_frame")
        return name

    @staticmethod
    def fits_in_memory(rows: int) -> bool:
        """Whether a table of that many rows is kept in memory (see `ROWS_IN_MEMORY`)."""
        return rows <= ROWS_IN_MEMORY

    def keep(self, stem: str, query: str, rows: int) -> str:
        """Store the result of a query of about `rows` rows and return its name.

        A result that does not fit in memory becomes a Parquet file in the workspace's folder.
        """
        name = self.new_name(stem)
        if self.fits_in_memory(rows):
            self.query(f"CREATE TABLE {name} AS {query}")
            return name
        path = self.path(f"{name}.parquet")
        self.copy(query, path)
        self.query(f"SET VARIABLE {name}_path = ?", [exact_pattern(path)])
        self.query(
            f"CREATE VIEW {name} AS SELECT * FROM "  # noqa: S608, own names
            f"read_parquet(getvariable('{name}_path'), {READ_OPTIONS})"
        )
        return name

    def copy(
        self,
        query: str,
        path: Path,
        options: str = "FORMAT parquet",
        parameters: Sequence[object] = (),
    ) -> None:
        """`copy_to` on the workspace's connection."""
        copy_to(self.connection, query, path, options, parameters)

    def count(self, table: str) -> int:
        """Number of rows of a table."""
        return int(self.query(f"SELECT count(*) FROM {table}")[0][0])  # noqa: S608, own names

    def in_order(self, table: str) -> str:
        """The table for a FROM clause, with its rows in the order of the input files.

        A join guarantees no order; rows that have a position are sorted by it.
        """
        columns = {name for name, *_ in self.query(f"DESCRIBE {table}")}
        return f"{table} ORDER BY position" if "position" in columns else table

    def frame(self, table: str, limit: int | None = None) -> pd.DataFrame:
        """The first `limit` rows (default: all) of a table as a pandas frame."""
        shown = self.count(table) if limit is None else limit
        sql = f"SELECT * FROM {self.in_order(table)} LIMIT ?"  # noqa: S608, own names
        return self.connection.execute(sql, [shown]).df()


def copy_to(
    connection: DuckDBPyConnection,
    query: str,
    path: Path,
    options: str = "FORMAT parquet",
    parameters: Sequence[object] = (),
) -> int:
    """Write the result of a query to the file `path` and return the number of rows.

    Raises `ResourceError` when the disk is full or the file cannot be written.
    """
    copy = f"COPY ({query}) TO ? ({options}, USE_TMP_FILE false)"
    with writable(path) as target, clear_resource_errors(display_name(path)):
        return int(connection.execute(copy, [*parameters, target]).fetchall()[0][0])


@contextmanager
def clear_resource_errors(place: str) -> Iterator[None]:
    """Turn DuckDB's errors about memory, disk space and permissions into `ResourceError`."""
    try:
        yield
    except (duckdb.OutOfMemoryException, duckdb.IOException) as error:
        raise ResourceError(
            f"The listings cannot be written to {place}.",
            f"DuckDB reports: {first_line(error)}.",
            "Free some space, or choose a writable folder; files that were there before are "
            "intact.",
        ) from error


def first_line(error: Exception) -> str:
    """The first line of an error's message, without a final period."""
    return str(error).partition("\n")[0].rstrip(".")
