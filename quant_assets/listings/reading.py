"""Listing files in: CSV, JSON and Parquet, with everything that is wrong with such files.

Every row of a file becomes one row of its Parquet snapshot, either as text as written or with the
reason why it could not be read. Snapshots are named by the file's content, so an unchanged file is
not parsed again; a single file of which no snapshot is wanted becomes a table instead, unless it is
large. A well-formed UTF-8 CSV file is parsed by DuckDB; any doubt about a file sends it to the
line-by-line parser, which loses no row.
"""

import codecs
import csv
import hashlib
import json
import logging
import re
import secrets
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, TextIO

import duckdb
import pandas as pd
from duckdb import DuckDBPyConnection

from quant_assets.atomic_files import replace_durably
from quant_assets.duckdb_files import READ_OPTIONS, display_name, exact_pattern, readable
from quant_assets.errors import InputError
from quant_assets.listings import stages
from quant_assets.listings.headers import TEXT_COLUMNS, ColumnMap, map_columns, require_columns
from quant_assets.listings.quarantine import QuarantineReason
from quant_assets.listings.stages import (
    ROW_ID,
    RawListings,
    ReadFile,
    Workspace,
    connect_in_memory,
    copy_to,
)

MAX_LINE_CHARACTERS = 131_072
"""A longer line is no listing; also the csv module's own limit for a field."""
MAX_COLUMNS = 10_000
"""More columns than this, in a file or over all rows of a JSON file, are no listings."""
MAX_RECORD_LINES = 20
"""Lines that one quoted record may span before its quote counts as never closed."""

_PARSER_VERSION = 3
"""Part of a snapshot's name; raise it whenever parsing changes."""
_DELIMITERS = (",", ";", "\t", "|")
_CHUNK_ROWS = 50_000
_logger = logging.getLogger(__name__)
_WIDE = 100
"""From so many columns on, rows pass through Python: DuckDB plans in more than linear time."""
_LINE_END = re.compile(r"\r\n|\n|\r")
"""A line of JSON may hold the other characters at which Python ends lines."""
# What DuckDB's trim takes away: the space separators of Unicode (category Zs), no tabs.
_SPACES = " \u00a0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a\u202f\u205f\u3000"
_SHOWN_CHARACTERS = 200
_BOMS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


@dataclass(frozen=True)
class Rejected:
    """A row that could not be read, with the beginning of its text."""

    line_number: int
    text: str
    reason: QuarantineReason
    detail: str


Record = tuple[str | int | None, ...]
"""Line number, the texts of `TEXT_COLUMNS`, and the further columns as a JSON object."""


@dataclass(frozen=True)
class _FileFacts:
    sha256: str
    encoding: str
    lines: int
    has_nul: bool


@dataclass(frozen=True)
class _Target:
    """Where the parsed rows of one file go: a table of the workspace, or a Parquet file."""

    place: str | Path
    """The table's name, or the file's path."""

    def write(
        self, connection: DuckDBPyConnection, query: str, parameters: Sequence[object]
    ) -> int:
        """Write the result of a query there, in place of what was there; returns its rows."""
        if isinstance(self.place, str):
            statement = f"CREATE OR REPLACE TABLE {self.place} AS {query}"
            return int(connection.execute(statement, [*parameters]).fetchall()[0][0])
        return copy_to(connection, query, self.place, parameters=parameters)


def read_raw(paths: Sequence[Path], *, snapshots: Path | None = None) -> RawListings:
    """Read listing files and folders of them.

    `snapshots` is the folder where parsed files are kept by their content hash. A faulty file among
    several becomes one quarantined row; when none can be read, its `InputError` is raised. Raises
    `InputError` for a path that is missing or has an unknown extension.
    """
    files = expand_paths(paths)
    workspace = Workspace.create()
    folder = snapshots or workspace.path("snapshots")
    table = workspace.new_name("parsed_rows") if snapshots is None and len(files) == 1 else None
    read: list[ReadFile] = []
    faults: list[tuple[str, InputError]] = []
    for source_file, path in files:
        try:
            read.append(_read_file(workspace, source_file, path, folder, table))
        except InputError as error:
            faults.append((source_file, error))
    if not read:
        raise faults[0][1]
    return _assemble(workspace, read, faults, in_table=read[0].place == table)


def expand_paths(paths: Sequence[Path]) -> list[tuple[str, Path]]:
    """The listing files that `paths` mean, each with the name that rows carry.

    A file in a given folder is named by its path inside the folder.
    """
    found: list[tuple[str, Path]] = []
    for path in paths:
        if path.is_dir():
            inside = sorted(
                file
                for file in path.rglob("*")
                if file.is_file()
                and file.suffix.lower() in _PARSERS
                and not any(part.startswith(".") for part in file.relative_to(path).parts)
            )
            if not inside:
                raise InputError(
                    f"The folder {path} holds no listing files.",
                    f"Listing files end in {', '.join(_PARSERS)}.",
                    "Put a listing file there, or name another folder.",
                )
            found += [(display_name(file.relative_to(path).as_posix()), file) for file in inside]
        elif not path.is_file():
            raise InputError(
                f"The input {path} does not exist.",
                "It is neither a file nor a folder.",
                "Check the path.",
            )
        elif path.suffix.lower() not in _PARSERS:
            raise InputError(
                f"The input {path} has an unknown extension.",
                f"Listing files end in {', '.join(_PARSERS)}.",
                "Rename or convert the file.",
            )
        else:
            found.append((display_name(path.name), path))
    names = [name for name, _ in found]
    repeated = {name for name, count in Counter(names).items() if count > 1}
    return [
        (display_name(path.as_posix()) if name in repeated else name, path) for name, path in found
    ]


def _read_file(
    workspace: Workspace, source_file: str, path: Path, folder: Path, table: str | None
) -> ReadFile:
    """Parse one file into its snapshot, unless the snapshot is already there.

    With `table` a file that is small enough is parsed into a table of that name.
    """
    facts = _inspect(path)
    parse = _PARSERS[path.suffix.lower()]
    # The lines of a compressed file say nothing of its rows.
    if table and facts.lines <= stages.ROWS_IN_MEMORY and parse is not _parse_parquet:
        parsed, place, source = True, table, table
        with workspace.connection.cursor() as connection:
            parse(connection, path, facts, _Target(table))
    else:
        stem = f"{facts.sha256}{path.suffix.lower()}.v{_PARSER_VERSION}"
        kept = _intact_snapshot(folder, stem)
        parsed, snapshot = kept is None, kept or _new_snapshot(path, facts, folder, stem)
        place, source = str(snapshot), f"read_parquet($place, {READ_OPTIONS})"
    counted = f"SELECT count(*) FILTER (reason IS NULL), count(reason) FROM {source}"  # noqa: S608, own names
    bound = {} if source == table else {"place": exact_pattern(Path(place))}
    rows, rejected = workspace.query(counted, bound)[0]
    if rows + rejected == 0:
        raise InputError(
            f"The file {path} has no rows (after line 1).",
            "It has a header only." if path.suffix.lower() != ".json" else "Its list is empty.",
            "Export the listings again, or leave the file out.",
        )
    return ReadFile(source_file, facts.sha256, place, parsed, rows, rejected)


def _new_snapshot(path: Path, facts: _FileFacts, folder: Path, stem: str) -> Path:
    """Parse a file into `folder`; the snapshot's name holds its own digest."""
    folder.mkdir(parents=True, exist_ok=True)
    made = folder / f".{stem}.{secrets.token_hex(6)}.tmp"
    try:
        with connect_in_memory() as connection:
            _PARSERS[path.suffix.lower()](connection, path, facts, _Target(made))
        snapshot = folder / f"{stem}.{_digest(made)}.parquet"
        replace_durably(made, snapshot)
    finally:
        made.unlink(missing_ok=True)
    return snapshot


def _intact_snapshot(folder: Path, stem: str) -> Path | None:
    """The snapshot of that name whose content is what was written; damaged ones are removed."""
    for snapshot in folder.glob(f"{stem}.*.parquet"):
        if snapshot.is_file() and snapshot.name == f"{stem}.{_digest(snapshot)}.parquet":
            return snapshot
        _logger.warning("The snapshot %s is damaged; its file is parsed again.", snapshot)
        snapshot.unlink()
    return None


def _digest(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()[:32]


def _inspect(path: Path) -> _FileFacts:
    """Hash the file and find out how its text is stored, in one pass."""
    digest = hashlib.sha256()
    lines, size, has_nul, last = 0, 0, False, b"\n"
    decoder = codecs.getincrementaldecoder("utf-8")()
    utf8 = True
    bom = None
    try:
        with path.open("rb") as stream:
            while block := stream.read(1 << 20):
                if size == 0:
                    bom = next((name for mark, name in _BOMS if block.startswith(mark)), None)
                digest.update(block)
                size += len(block)
                lines += block.count(b"\n")
                has_nul = has_nul or b"\0" in block
                last = block[-1:]
                if utf8:
                    try:
                        decoder.decode(block)
                    except UnicodeDecodeError:
                        utf8 = False
    except OSError as error:
        raise InputError(
            f"The file {path} cannot be read.", f"{error.strerror}.", "Check its permissions."
        ) from error
    if size == 0:
        raise InputError(
            f"The file {path} is empty (line 1).",
            "It has neither a header nor rows.",
            "Export the listings again, or leave the file out.",
        )
    encoding = bom or ("utf-8" if utf8 else "cp1252")
    return _FileFacts(digest.hexdigest(), encoding, lines + (last != b"\n"), has_nul)


def _parse_csv(
    connection: DuckDBPyConnection, path: Path, facts: _FileFacts, target: _Target
) -> None:
    with path.open(encoding=facts.encoding, errors="replace", newline="") as stream:
        first = stream.readline(MAX_LINE_CHARACTERS)
        start = 1
        delimiter: str | None = None
        if first.casefold().startswith("sep=") and len(first.strip()) == 5:
            delimiter, first, start = first.strip()[4], stream.readline(MAX_LINE_CHARACTERS), 2
        header, delimiter = _read_header(first, delimiter, path)
        columns = _require_columns(header, path)
        plain = facts.encoding.startswith("utf-8") and not facts.has_nul and start == 1
        plain = plain and len(header) < _WIDE
        if plain and _copy_clean_csv(connection, path, facts, delimiter, columns, target):
            return
        rows = _csv_rows(stream, delimiter, len(header), columns, start + 1)
        _collect(connection, rows, columns, target)


def _read_header(line: str, delimiter: str | None, path: Path) -> tuple[list[str], str]:
    """The header's fields and the delimiter with which they make the most sense."""
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
    facts: _FileFacts,
    delimiter: str,
    columns: ColumnMap,
    target: _Target,
) -> bool:
    """Keep the rows of a file without any fault and with one line a row.

    False for any other file, which the line-by-line parser must read.
    """
    width = 1 + max(*columns.positions.values(), *columns.others.values(), 0)
    declared = "{" + ", ".join(f"'c{index}': 'VARCHAR'" for index in range(width)) + "}"
    connection.execute("SET VARIABLE csv_delimiter = ?", [delimiter]).fetchall()
    with readable(path) as pattern:
        connection.execute("SET VARIABLE csv_path = ?", [pattern]).fetchall()
        connection.execute(
            # Every line is a row: its number follows from the row's place among the kept ones, see
            # `_assemble`.
            # Counting here would keep DuckDB to one thread.
            "CREATE TEMP VIEW csv_rows AS FROM "
            f"read_csv(getvariable('csv_path'), {READ_OPTIONS}, delim=getvariable('csv_delimiter'),"
            " quote='\"', escape='\"', header=false, skip=1, all_varchar=true, auto_detect=false,"
            f" strict_mode=true, null_padding=false, columns={declared},"
            f" max_line_size={MAX_LINE_CHARACTERS})"
        ).fetchall()
        try:
            rows = f"(SELECT NULL::BIGINT AS line_number, {_named(columns)} FROM csv_rows)"  # noqa: S608, generated names
            copied = _keep_rows(connection, columns, [], target, rows, [*columns.others])
        except duckdb.Error:
            copied = -1
        connection.execute("DROP VIEW csv_rows").fetchall()
    return copied == facts.lines - 1


def _require_columns(header: Sequence[str], path: Path) -> ColumnMap:
    """`require_columns` for a header that is not too wide."""
    if len(header) > MAX_COLUMNS:
        raise InputError(
            f"The file {path} has {len(header)} columns (line 1).",
            f"Listings have at most {MAX_COLUMNS}.",
            "Keep the columns that describe the offers.",
        )
    return require_columns(header, path)


def _csv_rows(
    stream: TextIO, delimiter: str, width: int, columns: ColumnMap, first_line: int
) -> Iterator[Record | Rejected]:
    """The rows after the header; what is wrong with one row does not touch the next."""
    lines = _numbered_lines(stream, first_line)
    waiting: list[tuple[int, str, bool]] = []
    while True:
        line = waiting.pop(0) if waiting else next(lines, None)
        if line is None:
            return
        number, text, too_long = line
        if too_long:
            detail = f"More than {MAX_LINE_CHARACTERS} characters."
            yield _reject(number, text, QuarantineReason.LINE_TOO_LONG, detail)
        elif "\0" in text:
            yield _reject(number, text, QuarantineReason.NUL_BYTE, "")
        elif text.strip():
            fields = _split(text, delimiter)
            if fields is None:
                waiting += islice(lines, MAX_RECORD_LINES - 1 - len(waiting))
                fields, taken = _join_lines(text, waiting, delimiter, width)
                del waiting[:taken]
            if not isinstance(fields, list):
                detail = fields or "The quote is not closed."
                yield _reject(number, text, QuarantineReason.BROKEN_QUOTES, detail)
            else:
                yield _checked(number, text, fields, width, columns)


def _numbered_lines(stream: TextIO, number: int) -> Iterator[tuple[int, str, bool]]:
    """Line number, text, and whether the line was cut for its length."""
    while text := stream.readline(MAX_LINE_CHARACTERS):
        too_long = len(text) == MAX_LINE_CHARACTERS and text[-1] not in "\r\n"
        rest = text
        while too_long and rest and rest[-1] not in "\r\n":
            rest = stream.readline(MAX_LINE_CHARACTERS)
        yield number, text, too_long
        number += 1


def _split(text: str, delimiter: str) -> list[str] | str | None:
    """The fields of one record, None when a quote is still open, or what is wrong with it."""
    try:
        rows = list(csv.reader([text], delimiter=delimiter, strict=True))
    except csv.Error as error:
        return None if "unexpected end" in str(error) else f"{error}."
    return rows[0] if rows else []


def _join_lines(
    text: str, waiting: Sequence[tuple[int, str, bool]], delimiter: str, width: int
) -> tuple[list[str] | str | None, int]:
    """Close an open quote with the following lines; also how many of them were taken."""
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
            # A quote that closes in a row of another width was never meant to span lines.
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
        return _reject(number, text, QuarantineReason.WRONG_FIELD_COUNT, detail)
    return _record(number, columns, dict(enumerate(fields)))


def _record(number: int, columns: ColumnMap, values: Mapping[int, str | None]) -> Record | Rejected:
    """The row with these values at the places of the header."""
    texts = [values.get(columns.positions.get(name, -1)) for name in TEXT_COLUMNS]
    further = {
        label: (values[index] or "").strip(_SPACES) or None
        for index, label in columns.labels.items()
        if index in values
    }
    extra = json.dumps(further, ensure_ascii=False) if columns.labels else None
    try:
        "".join(filter(None, (*texts, extra))).encode()
    except UnicodeEncodeError:
        detail = "It has half a character (a lone surrogate)."
        return _reject(number, texts[0] or "", QuarantineReason.UNREADABLE_ROW, detail)
    return (number, *texts, extra)


def _reject(number: int, text: str, reason: QuarantineReason, detail: str) -> Rejected:
    shown = text[:_SHOWN_CHARACTERS].replace("\0", "\\0").strip()
    return Rejected(number, shown.encode(errors="backslashreplace").decode(), reason, detail)


def _parse_json(
    connection: DuckDBPyConnection, path: Path, facts: _FileFacts, target: _Target
) -> None:
    text = path.read_text(encoding=facts.encoding, errors="replace").lstrip("\ufeff")
    lines = path.suffix.lower() != ".json" or _is_json_lines(text)
    values = _json_lines(text) if lines else _json_list(text, path)
    names: dict[str, int] = {}
    for _, value in values:
        if isinstance(value, dict):
            for name in value:
                names.setdefault(name, len(names))
    columns = _require_columns(list(names), path)
    _collect(connection, _json_rows(values, names, columns), columns, target)


def _is_json_lines(text: str) -> bool:
    lines = [line for line in _LINE_END.split(text, maxsplit=3)[:3] if line.strip()]
    return len(lines) > 1 and all(line.startswith("{") and line.endswith("}") for line in lines)


def _json_lines(text: str) -> list[tuple[int, Any]]:
    """Line number and value of each line; a line that is no JSON stays a string."""
    values: list[tuple[int, Any]] = []
    for number, line in enumerate(_LINE_END.split(text), start=1):
        if not line.strip():
            continue
        try:
            values.append((number, _json_value(line)))
        except (ValueError, RecursionError):
            values.append((number, line))
    return values


def _json_list(text: str, path: Path) -> list[tuple[int, Any]]:
    """Place (from 1) and value of each element of the list."""
    try:
        value = _json_value(text)
    except (ValueError, RecursionError) as error:
        where = f"line {error.lineno}" if isinstance(error, json.JSONDecodeError) else "line 1"
        raise InputError(
            f"The file {path} is not valid JSON ({where}).",
            f"{error}.",
            "Correct the file; it must hold a list of objects, or one object a line.",
        ) from error
    if isinstance(value, dict):
        lists = [item for item in value.values() if isinstance(item, list)]
        value = lists[0] if len(lists) == 1 else [value]
    if not isinstance(value, list):
        raise InputError(
            f"The file {path} holds no list of listings (line 1).",
            "Its JSON value is neither a list nor an object.",
            "Give a list of objects, or one object a line.",
        )
    return list(enumerate(value, start=1))


def _json_value(text: str) -> Any:
    """JSON with its numbers as the text that was written."""
    return json.loads(text, parse_float=str, parse_int=str, parse_constant=str)


def _json_rows(
    values: Iterable[tuple[int, Any]], names: Mapping[str, int], columns: ColumnMap
) -> Iterator[Record | Rejected]:
    for number, value in values:
        try:
            if not isinstance(value, dict):
                text = value if isinstance(value, str) else json.dumps(value)
                yield _reject(number, text, QuarantineReason.NOT_AN_OBJECT, "")
                continue
            texts = {names[name]: _json_text(item) for name, item in value.items()}
            if any("\0" in (text or "") for text in (*value, *texts.values())):
                yield _reject(number, json.dumps(value), QuarantineReason.NUL_BYTE, "")
            else:
                yield _record(number, columns, texts)
        except RecursionError:
            detail = "Its values are nested too deeply."
            yield _reject(number, "", QuarantineReason.UNREADABLE_ROW, detail)


def _json_text(value: Any) -> str | None:
    if value is None or isinstance(value, str):
        return value
    return json.dumps(value, ensure_ascii=False)


def _parse_parquet(
    connection: DuckDBPyConnection, path: Path, facts: _FileFacts, target: _Target
) -> None:
    del facts
    source = f"read_parquet(?, {READ_OPTIONS})"
    try:
        with readable(path) as pattern:
            described = connection.execute(f"DESCRIBE FROM {source}", [pattern])
            header = [row[0] for row in described.fetchall()]
            columns = _require_columns(header, path)
            names = [f"c{index}" for index in range(len(header))]
            texts = ", ".join(f"CAST({name} AS VARCHAR) AS {name}" for name in names)
            rows = f"SELECT {texts} FROM {source} AS t({', '.join(names)})"  # noqa: S608, generated names
            if len(header) < _WIDE:
                connection.execute(
                    "CREATE TEMP TABLE parsed AS SELECT row_number() OVER () AS line_number, "  # noqa: S608, generated names
                    f"{_named(columns)} FROM ({rows})",
                    [*columns.others, pattern],
                ).fetchall()
                _keep_rows(connection, columns, [], target)
                return
            with connection.cursor() as reader:
                reader.execute(rows, [pattern])
                _collect(connection, _fetched_rows(reader, columns), columns, target)
    except (duckdb.Error, UnicodeDecodeError) as error:
        raise InputError(
            f"The file {path} cannot be read as Parquet.",
            str(error).partition("\n")[0],
            "Write it again, or give the listings as CSV or JSON.",
        ) from error


def _fetched_rows(reader: DuckDBPyConnection, columns: ColumnMap) -> Iterator[Record | Rejected]:
    number = 0
    while rows := reader.fetchmany(_WIDE):
        for row in rows:
            number += 1
            yield _record(number, columns, dict(enumerate(row)))


def _named(columns: ColumnMap) -> str:
    """The columns c0, c1, ... of a file as those of a listing; labels are to be bound."""
    texts = [
        f"c{columns.positions[name]} AS {name}"
        if name in columns.positions
        else f"CAST(NULL AS VARCHAR) AS {name}"
        for name in TEXT_COLUMNS
    ]
    pairs = [f"?, nullif(trim(c{index}), '')" for index in columns.others.values()]
    extra = f"json_object({', '.join(pairs)})" if pairs else "NULL"
    return f"{', '.join(texts)}, CAST({extra} AS VARCHAR) AS extra"


def _collect(
    connection: DuckDBPyConnection,
    rows: Iterator[Record | Rejected],
    columns: ColumnMap,
    target: _Target,
) -> None:
    """Gather parsed rows in DuckDB, some thousands at a time, and keep them."""
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
    _keep_rows(connection, columns, rejected, target)


def _keep_rows(
    connection: DuckDBPyConnection,
    columns: ColumnMap,
    rejected: Sequence[Rejected],
    target: _Target,
    source: str = "parsed",
    bound: Sequence[str] = (),
) -> int:
    """Keep the rows of `source`, trimmed, with the rejected rows; count all of them."""
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
    """  # noqa: S608, names of the project
    query = f"""
        SELECT line_number, {", ".join(texts)}, extra,
               CAST(NULL AS VARCHAR) AS reason, CAST(NULL AS VARCHAR) AS detail
        FROM {source} {rejects if rejected else ""}
    """  # noqa: S608, column names of the project; values are bound
    return target.write(connection, query, [*parameters, *bound])


def _assemble(
    workspace: Workspace,
    read: Sequence[ReadFile],
    faults: Sequence[tuple[str, InputError]],
    *,
    in_table: bool,
) -> RawListings:
    """All kept rows as one view, and one table of rejected rows.

    `in_table` says that the rows of the one file are in a table of the workspace.
    """
    places = sorted({file.place for file in read})
    files = workspace.add_frame(
        "files",
        pd.DataFrame(
            [(places.index(file.place), file.source_file, n) for n, file in enumerate(read)],
            columns=["place", "source_file", "number"],
        ),
    )
    if in_table:
        kept = f"(SELECT *, rowid AS row, 0 AS place FROM {places[0]})"  # noqa: S608, own names
    else:
        paths = workspace.new_name("snapshots")
        patterns = [exact_pattern(Path(place)) for place in places]
        workspace.query(f"SET VARIABLE {paths} = ?", [patterns])
        kept = (
            "(SELECT *, file_row_number AS row, file_index AS place FROM "  # noqa: S608, own names
            f"read_parquet(getvariable('{paths}'), {READ_OPTIONS}))"
        )
    # 2^40 lines a file: the position orders rows by file, then by line.
    source = f"""
        SELECT {ROW_ID} AS row_id,
               number * 1099511627776 + line_number AS position,
               source_file, line_number, {", ".join(TEXT_COLUMNS)}, extra, reason, detail
        FROM (SELECT * REPLACE (coalesce(line_number, row + 2) AS line_number) FROM {kept})
        JOIN {files} USING (place)
    """  # noqa: S608, names of the project
    rows = workspace.new_name("raw_rows")
    workspace.query(
        f"CREATE VIEW {rows} AS SELECT * EXCLUDE (reason, detail) FROM ({source}) "  # noqa: S608, own names
        "WHERE reason IS NULL"
    )
    rejected = workspace.new_name("raw_rejected")
    workspace.query(
        f"CREATE TABLE {rejected} AS SELECT row_id, source_file, line_number, title, reason, detail "  # noqa: S608, own names
        f"FROM ({source}) WHERE reason IS NOT NULL"
    )
    for name, error in faults:
        workspace.query(
            f"INSERT INTO {rejected} VALUES (md5($name), $name, 1, $name, $reason, $detail)",  # noqa: S608, own names
            {
                "name": name,
                "reason": QuarantineReason.UNREADABLE_FILE.value,
                "detail": f"{error.what} {error.why}",
            },
        )
    return RawListings(workspace, rows, rejected, tuple(read))


_Parser = Callable[[DuckDBPyConnection, Path, _FileFacts, _Target], None]
_PARSERS: dict[str, _Parser] = {
    ".csv": _parse_csv,
    ".tsv": _parse_csv,
    ".txt": _parse_csv,
    ".json": _parse_json,
    ".jsonl": _parse_json,
    ".ndjson": _parse_json,
    ".parquet": _parse_parquet,
}
