"""Output tables: CSV, Parquet or JSON by extension, written atomically.

Sellers' texts are neutralized in CSV files (see `spreadsheet_cells`), so no spreadsheet runs them as
formulas.
"""

from collections.abc import Iterable, Sequence
from itertools import count
from pathlib import Path

from quant_assets.atomic_files import atomic_path
from quant_assets.errors import InputError
from quant_assets.listings.workspace import Workspace
from quant_assets.spreadsheet_cells import neutralized, neutralized_sql

_COPY_OPTIONS = {
    ".csv": "FORMAT csv, HEADER true",
    ".tsv": "FORMAT csv, HEADER true, DELIMITER '\t'",
    ".json": "FORMAT json, ARRAY true",
    ".jsonl": "FORMAT json",
    ".ndjson": "FORMAT json",
    ".parquet": "FORMAT parquet",
}
_TEXT_FORMATS = frozenset({".csv", ".tsv"})
_INTERNAL_COLUMNS = ("position", "extra")
_OWN_WORDS = frozenset(
    {"row_id", "canonical_name", "match_type", "currency", "price_kind", "reason", "gpu_vendor"}
    | {"gpu_family", "form_factor"}
)
"""Text columns of a stage that hold only this project's own values, so no seller's formula. An
input file's column of the same name is still a seller's text."""


def require_known_format(path: Path) -> None:
    """Raise `InputError` when the extension of an output file is unknown."""
    if path.suffix.lower() not in _COPY_OPTIONS:
        raise InputError(
            f"The output {path} has an unknown extension.",
            f"Outputs end in {', '.join(_COPY_OPTIONS)}.",
            "Use one of these extensions.",
        )


def write_table(workspace: Workspace, table: str, path: Path) -> None:
    """Write a table of a stage, followed by the other columns of the input files.

    Raises `InputError` for an unknown extension.
    """
    require_known_format(path)
    suffix = path.suffix.lower()
    columns = {
        name: kind
        for name, kind, *_ in workspace.query(f"DESCRIBE {table}")
        if name not in _INTERNAL_COLUMNS
    }
    guarded = suffix in _TEXT_FORMATS
    selected = [
        _cell(name, _quoted(name), guarded and kind == "VARCHAR" and name not in _OWN_WORDS)
        for name, kind in columns.items()
    ]
    keys = other_columns(workspace, table)
    rows, parameters = workspace.in_order(table), []
    if keys:
        # One list per row, so that its JSON is parsed once however many columns there are.
        values = "json_extract_string(extra, ?)"
        if guarded:
            values = f"list_transform({values}, lambda cell: {neutralized_sql('cell')})"
        rows = f"(SELECT *, {values} AS other_values FROM {rows})"  # noqa: S608, quoted names
        parameters = [["/" + key.replace("~", "~0").replace("/", "~1") for key in keys]]
        labels = _labels(keys, columns)
        selected += [
            f"other_values[{place}] AS {_quoted(neutralized(label) if guarded else label)}"
            for place, label in enumerate(labels, start=1)
        ]
    with atomic_path(path) as temporary:
        query = f"SELECT {', '.join(selected)} FROM {rows}"  # noqa: S608, quoted names
        workspace.copy(query, temporary, _COPY_OPTIONS[suffix], parameters)


def _labels(keys: Sequence[str], taken: Iterable[str]) -> list[str]:
    """A name per column of the input files, unique regardless of case."""
    used = {name.casefold() for name in taken}
    labels = []
    for key in keys:
        label = key if key.casefold() not in used else f"input_{key}"
        stem = label
        for number in count(2):
            if label.casefold() not in used:
                break
            label = f"{stem}_{number}"
        used.add(label.casefold())
        labels.append(label)
    return labels


def other_columns(workspace: Workspace, table: str) -> list[str]:
    """The input files' columns that are not part of a listing, in order."""
    names = {name for name, *_ in workspace.query(f"DESCRIBE {table}")}
    if "extra" not in names:
        return []
    keys = workspace.query(f"SELECT DISTINCT json_keys(extra) FROM {table} WHERE extra IS NOT NULL")  # noqa: S608, own names
    return list(dict.fromkeys(key for (group,) in sorted(keys) for key in group))


def _cell(name: str, column: str, guarded: bool) -> str:
    """A column of a SELECT, neutralized if `guarded`."""
    return f"{neutralized_sql(column) if guarded else column} AS {_quoted(name)}"


def _quoted(name: str) -> str:
    """A column name as an SQL identifier."""
    return '"' + name.replace('"', '""') + '"'
