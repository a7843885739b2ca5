"""Caches under the data root, which may not be writable.

A command that writes to a folder of the user's choice must also work when the data root is
read-only, full, or owned by another user; the cache is then skipped.
"""

import atexit
import functools
import logging
import os
import shutil
import tempfile
from pathlib import Path

from quant_assets.atomic_files import write_text_atomically

_LOG = logging.getLogger(__name__)


def is_kept(path: Path) -> bool:
    """Whether the cached file `path` exists and is readable."""
    return os.access(path, os.R_OK)


def remember(path: Path, text: str) -> bool:
    """Write a cache file; returns whether that was possible."""
    try:
        write_text_atomically(path, text)
    except OSError as error:
        _LOG.debug("%s is not cached: %s.", path, error.strerror or error)
        return False
    return True


def kept_text(path: Path, text: str) -> Path:
    """A file with `text`: `path`, or if that cannot be written, one that lives as long as the process."""
    try:
        if path.read_bytes() == text.encode():
            return path
    except OSError:
        pass  # it is written below
    if remember(path, text):
        return path
    temporary = _temporary_folder() / path.name
    write_text_atomically(temporary, text)
    return temporary


@functools.cache
def _temporary_folder() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="quant-assets-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder
