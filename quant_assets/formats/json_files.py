"""JSON from untrusted sources, read with limits: a hostile file raises an error, nothing worse.

Refused: files that are too large or hold too many values (memory), nesting that exhausts the
stack, duplicate names (readers differ on which one counts), and invalid Unicode.
"""

import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Final

from quant_assets.errors import InputError

MAX_BYTES: Final = 100_000_000
"""The limit of the safetensors library for its headers; the largest index published has 20 MB."""
MAX_VALUES: Final = 2_000_000
"""Python takes up to 250 bytes per value, so 500 MB; a header of 100,000 tensors has 800,000."""
MAX_DEPTH: Final = 100
"""Configurations of published models nest no deeper than 8."""
_CHUNK_BYTES: Final = 1 << 20
_STRUCTURE: Final = b",[{"
_ESCAPED_SURROGATE: Final = re.compile(rb"\\u[dD][89a-fA-F]")


def read_json_object(path: Path, *, next_step: str = "Fetch the file again.") -> dict[str, Any]:
    """The object in the JSON file `path`; raises `InputError` for anything else.

    `Infinity` and `NaN` are read as floats, because configurations of published models contain them;
    callers check the numbers that they use.
    """
    content = read_json(path, next_step=next_step)
    if not isinstance(content, dict):
        raise InputError(
            f"The file {path} cannot be read as a JSON object.",
            f"It holds a {type(content).__name__}.",
            next_step,
        )
    return content


def read_json(path: Path, *, next_step: str = "Fetch the file again.") -> Any:
    """The content of the JSON file `path`; raises `InputError` beyond the limits or for damage."""
    try:
        if not path.is_file():
            raise ValueError("it is missing or is not a regular file")
        with path.open("rb") as stream:
            return parse_json(stream.read(MAX_BYTES + 1))
    except (OSError, ValueError) as error:
        raise InputError(
            f"The file {path} cannot be read as JSON.", f"{error}.", next_step
        ) from error


def parse_json_object(data: bytes, *, allow_constants: bool = True) -> dict[str, Any]:
    """The JSON object in `data`; raises `ValueError` with a readable reason for anything else.

    See `parse_json`.
    """
    content = parse_json(data, allow_constants=allow_constants)
    if not isinstance(content, dict):
        raise ValueError(f"it holds a {type(content).__name__} where an object is expected")
    return content


def parse_json(data: bytes, *, allow_constants: bool = True) -> Any:
    """The JSON value in `data`; raises `ValueError` with a readable reason beyond a limit.

    Without `allow_constants`, `NaN` and `Infinity` are refused.
    """
    if len(data) > MAX_BYTES:
        raise ValueError(f"it has more than {MAX_BYTES:,} bytes")
    if sum(data.count(character) for character in _STRUCTURE) > MAX_VALUES:
        raise ValueError(f"it has more than {MAX_VALUES:,} values")
    options: dict[str, Any] = {} if allow_constants else {"parse_constant": _refuse_constant}
    try:
        content = json.loads(data.decode("utf-8"), object_pairs_hook=_distinct, **options)
    except RecursionError as error:
        raise ValueError(f"it is nested deeper than {MAX_DEPTH} levels") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"it is not UTF-8 at byte {error.start}") from error
    _check_values(content, strings=_ESCAPED_SURROGATE.search(data) is not None)
    return content


def _refuse_constant(constant: str) -> None:
    raise ValueError(f"it holds {constant}, which is not a number")


def _distinct(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) != len(pairs):
        seen: set[str] = set()
        for name, _ in pairs:
            if name in seen:
                raise ValueError(f"the name {name[:100]!r} occurs twice")
            seen.add(name)
    return content


def _check_values(content: Any, *, strings: bool) -> None:
    level: list[Any] = [[content]]
    for _ in range(MAX_DEPTH + 1):
        below: list[Any] = []
        for container in level:
            children: Iterable[Any] = container
            if isinstance(container, dict):
                children = container.values()
                if strings:
                    _check_text(container)
            if strings:
                _check_text(child for child in children if isinstance(child, str))
            below += [child for child in children if isinstance(child, dict | list)]
        if not below:
            return
        level = below
    raise ValueError(f"it is nested deeper than {MAX_DEPTH} levels")


def _check_text(strings: Iterable[str]) -> None:
    for text in strings:
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise ValueError(
                "it holds half of a surrogate pair, which is invalid Unicode"
            ) from error
