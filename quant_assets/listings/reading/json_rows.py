"""JSON files: a list of objects, an object that holds one list, or one object per line."""

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from duckdb import DuckDBPyConnection

from quant_assets.errors import InputError
from quant_assets.listings.headers import ColumnMap, require_columns
from quant_assets.listings.quarantine import QuarantineReason
from quant_assets.listings.reading.inspection import FileFacts
from quant_assets.listings.reading.records import (
    Record,
    Rejected,
    Target,
    collect_rows,
    make_record,
    reject_row,
)

_LINE_END = re.compile(r"\r\n|\n|\r")
"""JSON text may contain the other characters at which `str.splitlines` breaks lines."""


def parse_json(
    connection: DuckDBPyConnection, path: Path, facts: FileFacts, target: Target
) -> None:
    """Parse a JSON file; raises `InputError` when it is not a list of listings."""
    text = path.read_text(encoding=facts.encoding, errors="replace").lstrip("\ufeff")
    lines = path.suffix.lower() != ".json" or _is_json_lines(text)
    values = _json_lines(text) if lines else _json_list(text, path)
    names: dict[str, int] = {}
    for _, value in values:
        if isinstance(value, dict):
            for name in value:
                names.setdefault(name, len(names))
    columns = require_columns(list(names), path)
    collect_rows(connection, _json_rows(values, names, columns), columns, target)


def _is_json_lines(text: str) -> bool:
    lines = [line for line in _LINE_END.split(text, maxsplit=3)[:3] if line.strip()]
    return len(lines) > 1 and all(line.startswith("{") and line.endswith("}") for line in lines)


def _json_lines(text: str) -> list[tuple[int, Any]]:
    """Line number and value of each line; a line that is not JSON stays a string."""
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
    """Position (from 1) and value of each element of the list."""
    try:
        value = _json_value(text)
    except (ValueError, RecursionError) as error:
        where = f"line {error.lineno}" if isinstance(error, json.JSONDecodeError) else "line 1"
        raise InputError(
            f"The file {path} is not valid JSON ({where}).",
            f"{error}.",
            "Correct the file; it must contain a list of objects, or one object per line.",
        ) from error
    if isinstance(value, dict):
        lists = [item for item in value.values() if isinstance(item, list)]
        value = lists[0] if len(lists) == 1 else [value]
    if not isinstance(value, list):
        raise InputError(
            f"The file {path} contains no list of listings (line 1).",
            "Its JSON value is neither a list nor an object.",
            "Provide a list of objects, or one object per line.",
        )
    return list(enumerate(value, start=1))


def _json_value(text: str) -> Any:
    """Parsed JSON with its numbers as text, exactly as written."""
    return json.loads(text, parse_float=str, parse_int=str, parse_constant=str)


def _json_rows(
    values: Iterable[tuple[int, Any]], names: Mapping[str, int], columns: ColumnMap
) -> Iterator[Record | Rejected]:
    for number, value in values:
        try:
            if not isinstance(value, dict):
                text = value if isinstance(value, str) else json.dumps(value)
                yield reject_row(number, text, QuarantineReason.NOT_AN_OBJECT, "")
                continue
            texts = {names[name]: _json_text(item) for name, item in value.items()}
            if any("\0" in (text or "") for text in (*value, *texts.values())):
                yield reject_row(number, json.dumps(value), QuarantineReason.NUL_BYTE, "")
            else:
                yield make_record(number, columns, texts)
        except RecursionError:
            detail = "Its values are nested too deeply."
            yield reject_row(number, "", QuarantineReason.UNREADABLE_ROW, detail)


def _json_text(value: Any) -> str | None:
    if value is None or isinstance(value, str):
        return value
    return json.dumps(value, ensure_ascii=False)
