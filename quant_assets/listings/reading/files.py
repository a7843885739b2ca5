"""Listing files and folders of them, read into one stage of raw rows.

Every row of a file becomes one row of the stage: its text exactly as written, or the reason why it
could not be read. Parsed files are kept as Parquet snapshots, named by the file's content; a single
file without a cache becomes a table in memory instead, unless it is large.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import pandas as pd
from duckdb import DuckDBPyConnection

from quant_assets.duckdb_files import READ_OPTIONS, display_name, exact_pattern
from quant_assets.errors import InputError
from quant_assets.listings.headers import TEXT_COLUMNS
from quant_assets.listings.quarantine import QuarantineReason
from quant_assets.listings.reading.csv_rows import parse_csv
from quant_assets.listings.reading.inspection import FileFacts, inspect_file
from quant_assets.listings.reading.json_rows import parse_json
from quant_assets.listings.reading.parquet_rows import parse_parquet
from quant_assets.listings.reading.records import Target
from quant_assets.listings.stages import ROW_ID, RawListings, ReadFile
from quant_assets.listings.store import ParseCache
from quant_assets.listings.workspace import Workspace, connect_in_memory

_PARSER_VERSION = 3
"""Part of a snapshot's name; increment it whenever parsing changes."""

_Parser = Callable[[DuckDBPyConnection, Path, FileFacts, Target], None]
_PARSERS: dict[str, _Parser] = {
    ".csv": parse_csv,
    ".tsv": parse_csv,
    ".txt": parse_csv,
    ".json": parse_json,
    ".jsonl": parse_json,
    ".ndjson": parse_json,
    ".parquet": parse_parquet,
}


def read_raw(paths: Sequence[Path], *, cache: ParseCache | None = None) -> RawListings:
    """Read listing files and folders of them; with `cache`, unchanged files are not parsed again.

    An unreadable file among several becomes one rejected row; when no file is readable, the first
    one's `InputError` is raised. Raises `InputError` for a path that is missing or has an unknown
    extension.
    """
    files = expand_paths(paths)
    workspace = Workspace.create()
    table = workspace.new_name("parsed_rows") if cache is None and len(files) == 1 else None
    cache = cache or ParseCache(workspace.path("snapshots"))
    read: list[ReadFile] = []
    faults: list[tuple[str, InputError]] = []
    for source_file, path in files:
        try:
            read.append(_read_file(workspace, source_file, path, cache, table))
        except InputError as error:
            faults.append((source_file, error))
    if not read:
        raise faults[0][1]
    return _assemble(workspace, read, faults, in_table=read[0].place == table)


def expand_paths(paths: Sequence[Path]) -> list[tuple[str, Path]]:
    """All listing files in `paths`, each with the `source_file` that its rows get.

    A file found in a folder is named by its path relative to that folder.
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
                    f"The folder {path} contains no listing files.",
                    f"Listing files end in {', '.join(_PARSERS)}.",
                    "Put a listing file there, or choose another folder.",
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
    workspace: Workspace, source_file: str, path: Path, cache: ParseCache, table: str | None
) -> ReadFile:
    """Parse one file into a snapshot, unless the cache has it already.

    With `table`, a file that fits in memory is parsed into a table of that name instead.
    """
    facts = inspect_file(path)
    parse = _PARSERS[path.suffix.lower()]
    # The number of "lines" in a compressed file says nothing about its rows.
    if table and workspace.fits_in_memory(facts.lines) and parse is not parse_parquet:
        parsed, place, source = True, table, table
        with workspace.connection.cursor() as connection:
            parse(connection, path, facts, Target(table))
    else:
        stem = f"{facts.sha256}{path.suffix.lower()}.v{_PARSER_VERSION}"
        known = cache.find(stem)

        def write(snapshot: Path) -> None:
            with connect_in_memory() as connection:
                parse(connection, path, facts, Target(snapshot))

        parsed, snapshot = known is None, known or cache.add(stem, write)
        place, source = str(snapshot), f"read_parquet($place, {READ_OPTIONS})"
    counted = f"SELECT count(*) FILTER (reason IS NULL), count(reason) FROM {source}"  # noqa: S608, own names
    bound = {} if source == table else {"place": exact_pattern(Path(place))}
    rows, rejected = workspace.query(counted, bound)[0]
    if rows + rejected == 0:
        raise InputError(
            f"The file {path} has no rows (after line 1).",
            "It has only a header." if path.suffix.lower() != ".json" else "Its list is empty.",
            "Export the listings again, or leave the file out.",
        )
    return ReadFile(source_file, facts.sha256, place, parsed, rows, rejected)


def _assemble(
    workspace: Workspace,
    read: Sequence[ReadFile],
    faults: Sequence[tuple[str, InputError]],
    *,
    in_table: bool,
) -> RawListings:
    """All valid rows as one view, and all rejected rows as one table.

    `in_table` states that the only file's rows are in a table of the workspace.
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
    # Up to 2^40 lines per file: positions order rows by file, then by line. A row without a line
    # number comes from a clean CSV file, where it follows from the row's place below the header.
    source = f"""
        SELECT {ROW_ID} AS row_id,
               number * 1099511627776 + line_number AS position,
               source_file, line_number, {", ".join(TEXT_COLUMNS)}, extra, reason, detail
        FROM (SELECT * REPLACE (coalesce(line_number, row + 2) AS line_number) FROM {kept})
        JOIN {files} USING (place)
    """  # noqa: S608, own names
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
