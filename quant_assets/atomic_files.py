"""Durable, atomic writes: a temporary name in the same folder, fsync, rename, fsync again."""

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from quant_assets.errors import InputError

_LONGEST_STEM_BYTES = 200  # names have up to 255 bytes


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


def create_file(path: Path, mode: int = 0o666) -> int:
    """Create `path` and return its descriptor, open for writing.

    Raises `FileExistsError` for a name that is taken, even by a link: links are not followed.
    """
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)


def _temporary_beside(final: Path) -> Path:
    """A hidden random name beside `final`, within the file system's length limit."""
    stem = os.fsencode(final.name)[:_LONGEST_STEM_BYTES].decode(errors="ignore")
    return final.with_name(f".{stem}.{secrets.token_hex(6)}.tmp")


@contextmanager
def atomic_path(final: Path) -> Iterator[Path]:
    """Yield a new, empty file beside `final`; it becomes `final` when the block succeeds.

    The folder is created. If the block raises, the temporary file is removed and `final` remains
    unchanged. A link at `final` is replaced; its target remains unchanged.
    """
    final.parent.mkdir(parents=True, exist_ok=True)
    temporary = _temporary_beside(final)
    os.close(create_file(temporary))
    try:
        yield temporary
        replace_durably(temporary, final)
    finally:
        temporary.unlink(missing_ok=True)


def write_text_atomically(final: Path, text: str) -> None:
    """Write `text` as UTF-8 to `final`, completely or not at all; an `OSError` names `final`."""
    try:
        with atomic_path(final) as temporary:
            temporary.write_text(text, encoding="utf-8")
    except OSError as error:
        # Write errors name no file, others the temporary one.
        error.filename = str(final)
        raise


def path_inside(root: Path, relative: str | Path) -> Path:
    """Return `root / relative`, resolved; raise `InputError` if it leads out of `root`."""
    resolved_root = root.resolve()
    candidate = (resolved_root / relative).resolve()
    if not candidate.is_relative_to(resolved_root):
        raise InputError(
            f"The path {str(relative)!r} leads out of {resolved_root}.",
            "Paths from a configuration must stay inside the data root.",
            "Move the file into the data root, or use a path inside it.",
        )
    return candidate
