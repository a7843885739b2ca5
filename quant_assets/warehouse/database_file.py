"""One DuckDB file of the warehouse: creating its raw tables, checking it for damage."""

from collections.abc import Callable
from pathlib import Path

import duckdb

Seed = Callable[[duckdb.DuckDBPyConnection], None]
"""Fills the empty raw tables of a new file from the records."""

_SCHEMA = Path(__file__).with_name("schema.sql")


def configure(connection: duckdb.DuckDBPyConnection) -> None:
    """Set times to UTC and switch off the progress bar, which would go to standard output."""
    connection.execute("set time zone 'UTC'").fetchall()
    connection.execute("set enable_progress_bar = false").fetchall()


def create_raw_tables(path: Path, seed: Seed | None = None) -> set[str]:
    """Bring the raw tables of the file up to date, creating those that it lacks, then call `seed`.

    Returns all tables and views as `schema.name`.
    """
    connection = duckdb.connect(str(path))
    try:
        configure(connection)
        connection.execute(_SCHEMA.read_text(encoding="utf-8")).fetchall()
        if seed is not None:
            seed(connection)
        return {f"{schema}.{name}" for schema, name, _ in _relations(connection)}
    finally:
        connection.close()


def read_through(path: Path) -> set[str]:
    """Read every table to its end; return all tables and views as `schema.name`.

    Raises `duckdb.Error` for a file that is damaged anywhere: every block has a checksum.
    """
    connection = duckdb.connect(str(path), read_only=True)
    try:
        configure(connection)
        rows = _relations(connection)
        for schema, name, kind in rows:
            if kind == "BASE TABLE":
                table = ".".join('"' + part.replace('"', '""') + '"' for part in (schema, name))
                connection.execute(f"select bit_xor(hash(t)) from {table} t").fetchall()  # noqa: S608
        return {f"{schema}.{name}" for schema, name, _ in rows}
    finally:
        connection.close()


def _relations(connection: duckdb.DuckDBPyConnection) -> list[tuple[str, str, str]]:
    """Schema, name and type of all tables and views."""
    return connection.execute(
        "select table_schema, table_name, table_type from information_schema.tables "
        "where table_catalog = current_database()"
    ).fetchall()


def fold_log_in(path: Path) -> None:
    """Write what is in the write-ahead log into the file itself."""
    connection = duckdb.connect(str(path))
    try:
        connection.execute("checkpoint").fetchall()
    finally:
        connection.close()


def write_ahead_log(path: Path) -> Path:
    """The file in which DuckDB keeps changes that are not yet in the database file."""
    return path.with_name(f"{path.name}.wal")


def is_damage(error: duckdb.Error) -> bool:
    """Whether the error is about the file, which cannot be read or written, and not the query."""
    return isinstance(
        error,
        duckdb.IOException
        | duckdb.FatalException
        | duckdb.InternalException
        | duckdb.SerializationException,
    ) or type(error) in (duckdb.Error, duckdb.OperationalError, duckdb.DatabaseError)
