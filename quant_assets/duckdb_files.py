"""Files for DuckDB under their exact names.

DuckDB treats a path as a glob pattern (`*`, `?`, `[`; in patterns, `\\` separates folders), requires
UTF-8, expands a leading `~`, and turns folders named `name=value` into columns. Every path that it
reads or writes goes through this module; readers also get `READ_OPTIONS`.
"""

import re
import secrets
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from quant_assets.errors import InputError

READ_OPTIONS = "hive_partitioning=false"
"""Required in every `read_csv`, `read_json` and `read_parquet`."""

_PATTERN_CHARACTERS = re.compile(r"[*?\[]")


def exact_pattern(path: Path) -> str:
    """The pattern for DuckDB's readers that matches the file `path` and no other.

    Raises `InputError` for a name that no pattern can match; `readable` handles such files too.
    """
    if not _has_pattern(path):
        raise InputError(
            f"DuckDB cannot open the file {display_name(path)}.",
            "Its path contains a backslash together with *, ? or [, or bytes that are not UTF-8.",
            "Rename the file or its folders, or move it.",
        )
    return _PATTERN_CHARACTERS.sub(r"[\g<0>]", str(path.absolute()))


@contextmanager
def readable(path: Path) -> Iterator[str]:
    """A pattern for DuckDB's readers that matches the file `path`, whatever its name."""
    if _has_pattern(path):
        yield exact_pattern(path)
        return
    with tempfile.TemporaryDirectory(prefix="quant_assets_link_") as folder:
        link = Path(folder) / "file"
        link.symlink_to(path.absolute())
        yield exact_pattern(link)


@contextmanager
def writable(path: Path) -> Iterator[str]:
    """A path for DuckDB's `COPY ... TO`; after the block the file is at `path`."""
    target = path.absolute()
    if _is_utf8(target):
        yield str(target)
        return
    with tempfile.TemporaryDirectory(prefix="quant_assets_link_") as folder:
        link = Path(folder) / "folder"
        link.symlink_to(target.parent)
        written = link / f".{secrets.token_hex(6)}.tmp"
        try:
            yield str(written)
            written.replace(target)
        finally:
            written.unlink(missing_ok=True)


def display_name(path: Path | str) -> str:
    """The path as storable, printable text, with bytes that are not UTF-8 as `\\xff`."""
    return str(path).encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def _has_pattern(path: Path) -> bool:
    text = str(path.absolute())
    return _is_utf8(path.absolute()) and not ("\\" in text and _PATTERN_CHARACTERS.search(text))


def _is_utf8(path: Path) -> bool:
    try:
        str(path).encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True
