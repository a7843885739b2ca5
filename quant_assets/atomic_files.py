"""Durable, atomic writes: a temporary name in the same folder, fsync, rename, fsync again."""

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from quant_assets.errors import InputError


def fsync_directory(folder: Path) -> None:
    """Make renames inside `folder` durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def fsync_file(path: Path) -> None:
    """Make the content of `path` durable."""
    with path.open("rb") as stream:
        os.fsync(stream.fileno())


def replace_durably(temporary: Path, final: Path) -> None:
    """Give the finished file or folder `temporary` its name `final`, durably and atomically."""
    if temporary.is_file():
        fsync_file(temporary)
    temporary.replace(final)
    fsync_directory(final.parent)


@contextmanager
def atomic_path(final: Path) -> Iterator[Path]:
    """Yield a temporary path beside `final`; it becomes `final` when the block succeeds.

    The folder is created. When the block raises, the temporary file is removed and `final` stays
    as it was.
    """
    final.parent.mkdir(parents=True, exist_ok=True)
    temporary = final.with_name(f".{final.name}.{secrets.token_hex(6)}.tmp")
    try:
        yield temporary
        replace_durably(temporary, final)
    finally:
        temporary.unlink(missing_ok=True)


def write_text_atomically(final: Path, text: str) -> None:
    """Write `text` as UTF-8 to `final`, all of it or nothing."""
    with atomic_path(final) as temporary:
        temporary.write_text(text, encoding="utf-8")


def path_inside(root: Path, relative: str | Path) -> Path:
    """Return `root / relative`, resolved; raise `InputError` when it leads out of `root`."""
    resolved_root = root.resolve()
    candidate = (resolved_root / relative).resolve()
    if not candidate.is_relative_to(resolved_root):
        raise InputError(
            f"The path {str(relative)!r} leads out of {resolved_root}.",
            "Paths from a configuration stay inside the data root.",
            "Move the file into the data root, or name a path inside it.",
        )
    return candidate
