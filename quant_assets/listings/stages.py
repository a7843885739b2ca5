"""What passes from one stage of the listings to the next: tables in DuckDB, kept as Parquet."""

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

from quant_assets.atomic_files import atomic_path
from quant_assets.duckdb_files import READ_OPTIONS, display_name, exact_pattern, readable, writable
from quant_assets.errors import CheckFailed, InputError, ResourceError
from quant_assets.listings.headers import TEXT_COLUMNS

MEMORY_LIMIT = "1.4GB"
"""What DuckDB keeps in memory before it spills to disk; a market fits a small machine."""
ROWS_IN_MEMORY = 1_000_000
"""A row of a stage takes some 500 bytes there; more rows than this are kept as Parquet."""
_RAW_COLUMNS = ("position", "row_id", "source_file", "line_number", *TEXT_COLUMNS, "extra")
_REJECTED_COLUMNS = ("row_id", "source_file", "line_number", "title", "reason", "detail")
_PRICED_COLUMNS = (
    *("position", "row_id", "title", "seller", "url", "canonical_name", "gpu_count"),
    *("price_kind", "price_usd", "price_per_gpu_usd", "collapsed_duplicates", "extra"),
)
"""What the stage after it reads from a table that was kept."""
ROW_ID = "md5(concat_ws(chr(31), source_file, line_number, title, price_text, url))"
"""What identifies a row, as an SQL expression over its columns."""


def connect_in_memory(config: Mapping[str, str] | None = None) -> DuckDBPyConnection:
    """A DuckDB without a file; its progress bar, which goes to standard output, is off."""
    connection = duckdb.connect(":memory:", config=dict(config or {}))
    connection.execute("SET enable_progress_bar = false").fetchall()
    return connection


@dataclass(frozen=True)
class Workspace:
    """A DuckDB connection with a folder for what does not fit in memory; removed with it."""

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
        """A file in the workspace's folder."""
        return Path(self.folder.name) / name

    def new_name(self, stem: str) -> str:
        """A table name that nothing in the workspace has."""
        return f"{stem}_{next(self._numbers)}"

    def query(
        self, sql: str, parameters: Sequence[object] | Mapping[str, object] = ()
    ) -> list[tuple[Any, ...]]:
        """Run one statement with bound parameters and return its rows."""
        with _clear_resource_errors(self.folder.name):
            return self.connection.execute(sql, parameters or None).fetchall()

    def add_frame(self, stem: str, frame: pd.DataFrame) -> str:
        """Copy a frame into a new table and return its name."""
        name = self.new_name(stem)
        self.connection.register("incoming_frame", frame)
        self.query(f"CREATE TABLE {name} AS SELECT * FROM incoming_frame")  # noqa: S608, own names
        self.connection.unregister("incoming_frame")
        return name

    def keep(self, stem: str, query: str, rows: int) -> str:
        """Keep the result of a query, of about `rows` rows, and return its name.

        Above `ROWS_IN_MEMORY` it stays on disk, compressed, in the workspace's folder.
        """
        name = self.new_name(stem)
        if rows <= ROWS_IN_MEMORY:
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
        """`copy_to` with the connection of the workspace."""
        copy_to(self.connection, query, path, options, parameters)

    def count(self, table: str) -> int:
        """Number of rows of a table."""
        return int(self.query(f"SELECT count(*) FROM {table}")[0][0])  # noqa: S608, own names

    def in_order(self, table: str) -> str:
        """The table for a FROM clause, with its rows in the order of the input files.

        A join promises no order; rows that have a position are sorted by it.
        """
        columns = {name for name, *_ in self.query(f"DESCRIBE {table}")}
        return f"{table} ORDER BY position" if "position" in columns else table

    def frame(self, table: str, limit: int | None = None) -> pd.DataFrame:
        """The first rows (default: all) of a table as a pandas frame."""
        shown = self.count(table) if limit is None else limit
        sql = f"SELECT * FROM {self.in_order(table)} LIMIT ?"  # noqa: S608, own names
        return self.connection.execute(sql, [shown]).df()


@dataclass(frozen=True)
class ReadFile:
    """How one file was read."""

    source_file: str
    sha256: str
    place: str
    """Path of its Parquet snapshot, or the name of the workspace's table that holds its rows."""
    parsed: bool
    """False when the snapshot of an unchanged file was used."""
    rows: int
    rejected: int


@dataclass(frozen=True)
class _Stage:
    """Tables of one stage, by name in their workspace."""

    workspace: Workspace
    rows: str
    """Name of the stage's main table."""

    def frame(self, limit: int | None = None) -> pd.DataFrame:
        """The first rows (default: all) of the main table."""
        return self.workspace.frame(self.rows, limit)


@dataclass(frozen=True)
class RawListings(_Stage):
    """Rows as text as written, and the rows that could not be read as such."""

    rejected: str
    files: tuple[ReadFile, ...] = ()

    @property
    def counts(self) -> dict[str, int]:
        """Rows by what became of them."""
        return {
            "rows": self.workspace.count(self.rows),
            "rejected": self.workspace.count(self.rejected),
        }

    def save(self, folder: Path) -> None:
        """Write the tables as Parquet into `folder`, each of them whole or not at all."""
        _save(self.workspace, folder, {"rows": self.rows, "rejected": self.rejected})

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read what `save` wrote; raises `InputError` when it is not there."""
        return cls(*_load(folder, {"rows": _RAW_COLUMNS, "rejected": _REJECTED_COLUMNS}))


@dataclass(frozen=True)
class NormalizedListings(_Stage):
    """Rows with their card and price, duplicates collapsed, and the rows set aside."""

    quarantined: str

    @property
    def counts(self) -> dict[str, int]:
        """Rows by what became of them; together they are the rows that came in."""
        kept, collapsed = self.workspace.query(
            f"SELECT count(*), coalesce(sum(collapsed_duplicates), 0)::BIGINT FROM {self.rows}"  # noqa: S608, own names
        )[0]
        return {
            "normalized": kept,
            "collapsed_duplicates": collapsed,
            "quarantined": self.workspace.count(self.quarantined),
        }

    @property
    def match_rate(self) -> float | None:
        """Share of the rows that came in whose card and price are known (0 to 1)."""
        counts = self.counts
        total = sum(counts.values())
        return (total - counts["quarantined"]) / total if total else None

    @property
    def quarantine_counts(self) -> dict[str, int]:
        """Quarantined rows by reason code, most first."""
        return dict(
            self.workspace.query(
                f"SELECT reason, count(*) FROM {self.quarantined} GROUP BY reason ORDER BY 2 DESC, 1"  # noqa: S608, own names
            )
        )

    def quarantined_frame(self, limit: int | None = None) -> pd.DataFrame:
        """The first quarantined rows (default: all) with reason and explanation."""
        return self.workspace.frame(self.quarantined, limit)

    def save(self, folder: Path) -> None:
        """Write the tables as Parquet into `folder`, each of them whole or not at all."""
        _save(self.workspace, folder, {"rows": self.rows, "quarantined": self.quarantined})

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read what `save` wrote; raises `InputError` when it is not there."""
        return cls(*_load(folder, {"rows": _PRICED_COLUMNS, "quarantined": _REJECTED_COLUMNS[:-1]}))


@dataclass(frozen=True)
class EnrichedListings(_Stage):
    """Normalized rows with the figures of their card and, where asked for, its capacity."""

    @property
    def counts(self) -> dict[str, int]:
        """Rows that were enriched."""
        return {"enriched": self.workspace.count(self.rows)}

    def save(self, folder: Path) -> None:
        """Write the table as Parquet into `folder`, whole or not at all."""
        _save(self.workspace, folder, {"rows": self.rows})

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read what `save` wrote; raises `InputError` when it is not there."""
        return cls(*_load(folder, {"rows": (*_PRICED_COLUMNS, "vram_gb")}))


def check_conservation(
    raw: RawListings, normalized: NormalizedListings, enriched: EnrichedListings | None = None
) -> dict[str, int]:
    """Return the counts of all stages; raise `CheckFailed` when a row was lost or made up.

    Rows in = rows enriched + rows quarantined + duplicates collapsed into a kept row.
    """
    counts = {**raw.counts, **normalized.counts}
    received = counts["rows"] + counts["rejected"]
    kept = counts["normalized"]
    if enriched is not None:
        counts.update(enriched.counts)
        kept = counts["enriched"]
    accounted = kept + counts["quarantined"] + counts["collapsed_duplicates"]
    if received != accounted:
        raise CheckFailed(
            f"{received} rows came in and {accounted} are accounted for.",
            "Rows in must equal rows kept, quarantined and collapsed together: "
            + ", ".join(f"{name} {number}" for name, number in counts.items())
            + ".",
            "Do not use this output; keep the input files and report the fault.",
        )
    return counts


def copy_to(
    connection: DuckDBPyConnection,
    query: str,
    path: Path,
    options: str = "FORMAT parquet",
    parameters: Sequence[object] = (),
) -> int:
    """Write the result of a query to the file `path` and return its rows.

    Raises `ResourceError` when the disk is full or the file cannot be written.
    """
    copy = f"COPY ({query}) TO ? ({options}, USE_TMP_FILE false)"
    with writable(path) as target, _clear_resource_errors(display_name(path)):
        return int(connection.execute(copy, [*parameters, target]).fetchall()[0][0])


@contextmanager
def _clear_resource_errors(place: str) -> Iterator[None]:
    """DuckDB's errors of a full disk, a refused file or too little memory as `ResourceError`."""
    try:
        yield
    except (duckdb.OutOfMemoryException, duckdb.IOException) as error:
        raise ResourceError(
            f"The listings cannot be written to {place}.",
            f"DuckDB said: {_first_line(error)}.",
            "Free some space, or use a folder that can be written; files that were there before "
            "are whole.",
        ) from error


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0].rstrip(".")


def _save(workspace: Workspace, folder: Path, tables: Mapping[str, str]) -> None:
    for name, table in tables.items():
        with atomic_path(folder / f"{name}.parquet") as temporary:
            workspace.copy(f"SELECT * FROM {workspace.in_order(table)}", temporary)  # noqa: S608, own names


def _load(folder: Path, names: Mapping[str, Sequence[str]]) -> tuple[Any, ...]:
    """A new workspace and the names of the tables that `_save` wrote, each with its columns."""
    workspace = Workspace.create()
    tables = []
    for name, columns in names.items():
        path = folder / f"{name}.parquet"
        if not path.is_file():
            raise InputError(
                f"The folder {folder} has no {path.name}.",
                "The stage before this one has not been run, or its snapshot was removed.",
                "Run the stage before this one.",
            )
        table = workspace.new_name(name)
        try:
            with readable(path) as pattern:
                workspace.connection.execute(
                    f"CREATE TABLE {table} AS SELECT * FROM read_parquet(?, {READ_OPTIONS})",  # noqa: S608, own names
                    [pattern],
                ).fetchall()
            described = {column for column, *_ in workspace.query(f"DESCRIBE {table}")}
            if missing := [column for column in columns if column not in described]:
                raise duckdb.InvalidInputException(f"it has no column {missing[0]}")
        except (duckdb.Error, UnicodeDecodeError) as error:
            raise InputError(
                f"The file {path} is damaged or not a table of listings.",
                f"{_first_line(error)}.",
                "Read the listings again: `quant-assets demo`, or the job refresh_listings.",
            ) from error
        tables.append(table)
    return (workspace, *tables)
