"""Records of listing files: a parsed row or a rejected one, and where a parser writes them.

Every row of a file ends up in one table with the columns `line_number`, `TEXT_COLUMNS`, `extra` (the
file's other columns as JSON), and `reason` and `detail` for rejected rows.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import pandas as pd
from duckdb import DuckDBPyConnection

from quant_assets.listings.headers import TEXT_COLUMNS, ColumnMap
from quant_assets.listings.quarantine import QuarantineReason
from quant_assets.listings.workspace import copy_to

MAX_LINE_CHARACTERS = 131_072
"""A longer line is not a listing; also the csv module's default limit for a field."""
WIDE_COLUMNS = 100
"""Files with at least this many columns pass through Python: DuckDB's planning time grows faster
than linearly with the columns."""

_CHUNK_ROWS = 50_000
# The characters that DuckDB's trim strips: Unicode's space separators (category Zs), not tabs.
_SPACES = " \u00a0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a\u202f\u205f\u3000"
_SHOWN_CHARACTERS = 200


@dataclass(frozen=True)
class Rejected:
    """A row that could not be read."""

    line_number: int
    text: str
    """The beginning of its text."""
    reason: QuarantineReason
    detail: str


Record = tuple[str | int | None, ...]
"""Line number, the texts of `TEXT_COLUMNS`, and the other columns as a JSON object."""


@dataclass(frozen=True)
class Target:
    """The destination of one file's rows: a table of the workspace, or a Parquet file."""

    place: str | Path
    """The table's name, or the file's path."""

    def write(
        self, connection: DuckDBPyConnection, query: str, parameters: Sequence[object]
    ) -> int:
        """Replace the destination's content by the result of a query; return its row count."""
        if isinstance(self.place, str):
            statement = f"CREATE OR REPLACE TABLE {self.place} AS {query}"
            return int(connection.execute(statement, [*parameters]).fetchall()[0][0])
        return copy_to(connection, query, self.place, parameters=parameters)


def make_record(
    number: int, columns: ColumnMap, values: Mapping[int, str | None]
) -> Record | Rejected:
    """A row from its values by header position, or its rejection when it is not valid text."""
    texts = [values.get(columns.positions.get(name, -1)) for name in TEXT_COLUMNS]
    others = {
        label: (values[index] or "").strip(_SPACES) or None
        for index, label in columns.labels.items()
        if index in values
    }
    extra = json.dumps(others, ensure_ascii=False) if columns.labels else None
    try:
        "".join(filter(None, (*texts, extra))).encode()
    except UnicodeEncodeError:
        detail = "It contains half a character (a lone surrogate)."
        return reject_row(number, texts[0] or "", QuarantineReason.UNREADABLE_ROW, detail)
    return (number, *texts, extra)


def reject_row(number: int, text: str, reason: QuarantineReason, detail: str) -> Rejected:
    """The rejection of a row, with a short printable excerpt of its text."""
    shown = text[:_SHOWN_CHARACTERS].replace("\0", "\\0").strip()
    return Rejected(number, shown.encode(errors="backslashreplace").decode(), reason, detail)


def select_columns(columns: ColumnMap) -> str:
    """A select list that maps a file's columns c0, c1, ... to those of a listing.

    It has one parameter per label of `columns.others`.
    """
    texts = [
        f"c{columns.positions[name]} AS {name}"
        if name in columns.positions
        else f"CAST(NULL AS VARCHAR) AS {name}"
        for name in TEXT_COLUMNS
    ]
    pairs = [f"?, nullif(trim(c{index}), '')" for index in columns.others.values()]
    extra = f"json_object({', '.join(pairs)})" if pairs else "NULL"
    return f"{', '.join(texts)}, CAST({extra} AS VARCHAR) AS extra"


def collect_rows(
    connection: DuckDBPyConnection,
    rows: Iterator[Record | Rejected],
    columns: ColumnMap,
    target: Target,
) -> None:
    """Insert parsed rows into DuckDB in chunks, then write them to the target."""
    names = (*TEXT_COLUMNS, "extra")
    declared = ", ".join(f"{name} VARCHAR" for name in names)
    connection.execute(
        f"CREATE OR REPLACE TEMP TABLE parsed (line_number BIGINT, {declared})"
    ).fetchall()
    rejected: list[Rejected] = []
    while chunk := list(islice(rows, _CHUNK_ROWS)):
        rejected += [row for row in chunk if isinstance(row, Rejected)]
        records = [row for row in chunk if not isinstance(row, Rejected)]
        if records:
            frame = pd.DataFrame(records, columns=["line_number", *names], dtype=object)
            connection.register("chunk", frame)
            connection.execute(
                "INSERT INTO parsed SELECT * REPLACE (json(extra)::VARCHAR AS extra) FROM chunk"
            ).fetchall()
            connection.unregister("chunk")
    keep_rows(connection, columns, rejected, target)


def keep_rows(
    connection: DuckDBPyConnection,
    columns: ColumnMap,
    rejected: Sequence[Rejected],
    target: Target,
    source: str = "parsed",
    bound: Sequence[str] = (),
) -> int:
    """Write the rows of `source`, trimmed, and the rejected rows; return their total count.

    `bound` are the parameters of `source`. Rows without a currency or unit get the one that the
    header of the price column states.
    """
    parameters: list[str] = []
    texts = []
    stated = {"currency": columns.currency, "price_unit": columns.price_unit}
    for name in TEXT_COLUMNS:
        text = f"nullif(trim({name}), '')"
        if (value := stated.get(name)) is not None:
            text = f"coalesce({text}, ?)"
            parameters.append(value)
        texts.append(f"CAST({text} AS VARCHAR) AS {name}")
    reject_table = pd.DataFrame(
        [(row.line_number, row.text, row.reason.value, row.detail) for row in rejected],
        columns=["line_number", "title", "reason", "detail"],
    )
    connection.register("reject_rows", reject_table)
    empty = ", ".join(f"NULL AS {name}" for name in TEXT_COLUMNS if name != "title")
    rejects = f"""
        UNION ALL BY NAME
        SELECT CAST(line_number AS BIGINT) AS line_number, CAST(title AS VARCHAR) AS title, {empty},
               NULL AS extra, CAST(reason AS VARCHAR) AS reason, CAST(detail AS VARCHAR) AS detail
        FROM reject_rows
    """  # noqa: S608, own names
    query = f"""
        SELECT line_number, {", ".join(texts)}, extra,
               CAST(NULL AS VARCHAR) AS reason, CAST(NULL AS VARCHAR) AS detail
        FROM {source} {rejects if rejected else ""}
    """  # noqa: S608, column names of the project; values are bound
    return target.write(connection, query, [*parameters, *bound])
