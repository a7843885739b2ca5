"""Tables out: CSV, Parquet or JSON by extension, each whole or not at all.

A CSV cell that a spreadsheet would run as a formula is written with an apostrophe before it.
"""

from pathlib import Path

from quant_assets.atomic_files import atomic_path
from quant_assets.errors import InputError
from quant_assets.listings.stages import Workspace

_COPY_OPTIONS = {
    ".csv": "FORMAT csv, HEADER true",
    ".tsv": "FORMAT csv, HEADER true, DELIMITER '\t'",
    ".json": "FORMAT json, ARRAY true",
    ".jsonl": "FORMAT json",
    ".ndjson": "FORMAT json",
    ".parquet": "FORMAT parquet",
}
_TEXT_FORMATS = frozenset({".csv", ".tsv"})
_FORMULA_SIGNS = "=+-@|\t\r"
"""First characters after which a spreadsheet reads on as a formula."""
_INTERNAL_COLUMNS = ("position", "extra")
_OWN_WORDS = frozenset(
    {"row_id", "canonical_name", "match_type", "currency", "price_kind", "reason", "gpu_vendor"}
    | {"gpu_family", "form_factor"}
)
"""Text columns of a stage whose cells are this project's own names; no seller can put a formula
there. A further column of an input file may be called so as well, and is a seller's."""


def require_known_format(path: Path) -> None:
    """Raise `InputError` when the extension of an output file is not known."""
    if path.suffix.lower() not in _COPY_OPTIONS:
        raise InputError(
            f"The output {path} has an unknown extension.",
            f"Outputs end in {', '.join(_COPY_OPTIONS)}.",
            "Name the output with one of them.",
        )


def write_table(workspace: Workspace, table: str, path: Path) -> None:
    """Write a table of a stage, with the further columns of the input files at the end.

    Raises `InputError` for an unknown extension.
    """
    require_known_format(path)
    suffix = path.suffix.lower()
    columns = [
        (name, kind)
        for name, kind, *_ in workspace.query(f"DESCRIBE {table}")
        if name not in _INTERNAL_COLUMNS
    ]
    selected = [
        (name, _quoted(name), kind == "VARCHAR" and name not in _OWN_WORDS)
        for name, kind in columns
    ]
    parameters: list[str] = []
    taken = {name.casefold() for name, _ in columns}
    for key in further_columns(workspace, table):
        label = key if key.casefold() not in taken else f"input_{key}"
        taken.add(label.casefold())
        parameters.append("/" + key.replace("~", "~0").replace("/", "~1"))
        selected.append((label, f"json_extract_string(extra, ${len(parameters)})", True))
    expressions = ", ".join(
        _cell(name, expression, from_seller and suffix in _TEXT_FORMATS)
        for name, expression, from_seller in selected
    )
    with atomic_path(path) as temporary:
        workspace.query(
            f"COPY (SELECT {expressions} FROM {workspace.in_order(table)}) "  # noqa: S608, quoted names
            f"TO ${len(parameters) + 1} ({_COPY_OPTIONS[suffix]})",
            [*parameters, str(temporary)],
        )


def further_columns(workspace: Workspace, table: str) -> list[str]:
    """The names of the input files' columns that have no meaning here, in order."""
    names = {name for name, *_ in workspace.query(f"DESCRIBE {table}")}
    if "extra" not in names:
        return []
    keys = workspace.query(f"SELECT DISTINCT json_keys(extra) FROM {table} WHERE extra IS NOT NULL")  # noqa: S608, own names
    return list(dict.fromkeys(key for (group,) in sorted(keys) for key in group))


def _cell(name: str, expression: str, neutralized: bool) -> str:
    """One column of a SELECT; its cells and its own name made harmless where asked for."""
    if not neutralized:
        return f"{expression} AS {_quoted(name)}"
    label = f"'{name}" if name.startswith(tuple(_FORMULA_SIGNS)) else name
    codes = ", ".join(str(ord(sign)) for sign in _FORMULA_SIGNS)
    # A list, because DuckDB makes a join of a long IN.
    return (
        f"CASE WHEN list_contains([{codes}], ascii({expression})) "
        f"THEN concat(chr(39), {expression}) "
        f"ELSE {expression} END AS {_quoted(label)}"
    )


def _quoted(name: str) -> str:
    """A column name as an SQL identifier."""
    return '"' + name.replace('"', '""') + '"'
