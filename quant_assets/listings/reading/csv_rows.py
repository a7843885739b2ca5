"""CSV files: DuckDB parses a clean file in parallel, the line-by-line parser reads all others.

Any doubt about a file sends it to the line-by-line parser, which loses no row: whatever is wrong
with one row does not affect the next.
"""

import csv
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import TextIO

import duckdb
from duckdb import DuckDBPyConnection

from quant_assets.duckdb_files import READ_OPTIONS, readable
from quant_assets.errors import InputError
from quant_assets.listings.headers import ColumnMap, map_columns, require_columns
from quant_assets.listings.quarantine import QuarantineReason
from quant_assets.listings.reading.inspection import FileFacts
from quant_assets.listings.reading.records import (
    MAX_LINE_CHARACTERS,
    WIDE_COLUMNS,
    Record,
    Rejected,
    Target,
    collect_rows,
    keep_rows,
    make_record,
    reject_row,
    select_columns,
)

MAX_RECORD_LINES = 20
"""A quoted record may span this many lines; beyond that, its quote counts as never closed."""

_DELIMITERS = (",", ";", "\t", "|")


def parse_csv(connection: DuckDBPyConnection, path: Path, facts: FileFacts, target: Target) -> None:
    """Parse a CSV file; a first line such as `sep=;` states the delimiter.

    Raises `InputError` when the header cannot be used.
    """
    with path.open(encoding=facts.encoding, errors="replace", newline="") as stream:
        first = stream.readline(MAX_LINE_CHARACTERS)
        start = 1
        delimiter: str | None = None
        if first.casefold().startswith("sep=") and len(first.strip()) == 5:
            delimiter, first, start = first.strip()[4], stream.readline(MAX_LINE_CHARACTERS), 2
        header, delimiter = _read_header(first, delimiter, path)
        columns = require_columns(header, path)
        plain = facts.encoding.startswith("utf-8") and not facts.has_nul and start == 1
        plain = plain and len(header) < WIDE_COLUMNS
        if plain and _copy_clean_csv(connection, path, facts, delimiter, columns, target):
            return
        rows = _csv_rows(stream, delimiter, len(header), columns, start + 1)
        collect_rows(connection, rows, columns, target)


def _read_header(line: str, delimiter: str | None, path: Path) -> tuple[list[str], str]:
    """The header's fields, split by the delimiter that yields the most known columns."""
    if "\0" in line:
        raise InputError(
            f"The file {path} is not a text file (NUL byte in line 1).",
            "It is UTF-16 without a byte-order mark, or not a CSV file at all.",
            "Save it as UTF-8 text with a header line.",
        )
    if len(line) >= MAX_LINE_CHARACTERS:
        raise InputError(
            f"The header of the file {path} is longer than {MAX_LINE_CHARACTERS} characters "
            "(line 1).",
            "A header line names the columns.",
            "Put a header in the first line.",
        )
    # A wrong `sep=` line does not make the file unreadable.
    for candidates in ((delimiter,), _DELIMITERS) if delimiter else (_DELIMITERS,):
        splits = [(sign, _split(line, sign)) for sign in candidates]
        split = [(sign, fields) for sign, fields in splits if isinstance(fields, list)]
        mapped = [
            (columns, fields, sign) for sign, fields in split if (columns := map_columns(fields))
        ]
        if mapped:
            _, fields, sign = max(mapped, key=lambda found: len(found[0].positions))
            return fields, sign
    if not split:
        raise InputError(
            f"The header of the file {path} has a quote that is never closed (line 1).",
            "A header line names the columns.",
            "Correct the first line.",
        )
    require_columns(max((fields for _, fields in split), key=len), path)
    raise AssertionError("a header without a title was accepted")


def _copy_clean_csv(
    connection: DuckDBPyConnection,
    path: Path,
    facts: FileFacts,
    delimiter: str,
    columns: ColumnMap,
    target: Target,
) -> bool:
    """Write the rows of a file that has no faults and exactly one line per row.

    Returns False for any other file, which the line-by-line parser must read.
    """
    width = 1 + max(*columns.positions.values(), *columns.others.values(), 0)
    declared = "{" + ", ".join(f"'c{index}': 'VARCHAR'" for index in range(width)) + "}"
    connection.execute("SET VARIABLE csv_delimiter = ?", [delimiter]).fetchall()
    with readable(path) as pattern:
        connection.execute("SET VARIABLE csv_path = ?", [pattern]).fetchall()
        connection.execute(
            # Every line is a row, so `files.py` derives line numbers from the row's position in the
            # result. Counting here would restrict DuckDB to one thread.
            "CREATE TEMP VIEW csv_rows AS FROM "
            f"read_csv(getvariable('csv_path'), {READ_OPTIONS}, delim=getvariable('csv_delimiter'),"
            " quote='\"', escape='\"', header=false, skip=1, all_varchar=true, auto_detect=false,"
            f" strict_mode=true, null_padding=false, columns={declared},"
            f" max_line_size={MAX_LINE_CHARACTERS})"
        ).fetchall()
        try:
            rows = f"(SELECT NULL::BIGINT AS line_number, {select_columns(columns)} FROM csv_rows)"  # noqa: S608, generated names
            copied = keep_rows(connection, columns, [], target, rows, [*columns.others])
        except duckdb.Error:
            copied = -1
        connection.execute("DROP VIEW csv_rows").fetchall()
    return copied == facts.lines - 1


def _csv_rows(
    stream: TextIO, delimiter: str, width: int, columns: ColumnMap, first_line: int
) -> Iterator[Record | Rejected]:
    """The rows after the header; a fault in one row does not affect the next."""
    lines = _numbered_lines(stream, first_line)
    waiting: list[tuple[int, str, bool]] = []
    while True:
        line = waiting.pop(0) if waiting else next(lines, None)
        if line is None:
            return
        number, text, too_long = line
        if too_long:
            detail = f"More than {MAX_LINE_CHARACTERS} characters."
            yield reject_row(number, text, QuarantineReason.LINE_TOO_LONG, detail)
        elif "\0" in text:
            yield reject_row(number, text, QuarantineReason.NUL_BYTE, "")
        elif text.strip():
            fields = _split(text, delimiter)
            if fields is None:
                waiting += islice(lines, MAX_RECORD_LINES - 1 - len(waiting))
                fields, taken = _join_lines(text, waiting, delimiter, width)
                del waiting[:taken]
            if not isinstance(fields, list):
                detail = fields or "The quote is not closed."
                yield reject_row(number, text, QuarantineReason.BROKEN_QUOTES, detail)
            else:
                yield _checked(number, text, fields, width, columns)


def _numbered_lines(stream: TextIO, number: int) -> Iterator[tuple[int, str, bool]]:
    """Line number, text, and whether the line exceeded the limit and was cut."""
    while text := stream.readline(MAX_LINE_CHARACTERS):
        too_long = len(text) == MAX_LINE_CHARACTERS and text[-1] not in "\r\n"
        rest = text
        while too_long and rest and rest[-1] not in "\r\n":
            rest = stream.readline(MAX_LINE_CHARACTERS)
        yield number, text, too_long
        number += 1


def _split(text: str, delimiter: str) -> list[str] | str | None:
    """The fields of one record, None when a quote is still open, or a description of the fault."""
    try:
        rows = list(csv.reader([text], delimiter=delimiter, strict=True))
    except csv.Error as error:
        return None if "unexpected end" in str(error) else f"{error}."
    return rows[0] if rows else []


def _join_lines(
    text: str, waiting: Sequence[tuple[int, str, bool]], delimiter: str, width: int
) -> tuple[list[str] | str | None, int]:
    """Close an open quote with the following lines; also return how many of them were used."""
    for taken, (_, following, too_long) in enumerate(waiting, start=1):
        if too_long or "\0" in following:
            break
        text += following
        if len(text) > MAX_LINE_CHARACTERS:
            break
        if '"' not in following:
            continue
        fields = _split(text, delimiter)
        if isinstance(fields, list):
            # If the joined record has the wrong width, the quote was not meant to span lines.
            return (fields, taken) if len(fields) == width else (None, 0)
        if fields is not None:
            break
    return None, 0


def _checked(
    number: int, text: str, fields: list[str], width: int, columns: ColumnMap
) -> Record | Rejected:
    if len(fields) > width and not any(field.strip() for field in fields[width:]):
        fields = fields[:width]
    if len(fields) != width:
        detail = f"{len(fields)} fields, the header has {width}."
        return reject_row(number, text, QuarantineReason.WRONG_FIELD_COUNT, detail)
    return make_record(number, columns, dict(enumerate(fields)))
