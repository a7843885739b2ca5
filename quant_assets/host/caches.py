"""Caches under the data root: used where they can be written, done without where they cannot.

A command whose output goes to a folder of the user's needs nothing of the data root, which may be
read-only, full, or another user's.
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
    """Whether a cache has `path` and lets this user read it."""
    return os.access(path, os.R_OK)


def remember(path: Path, text: str) -> bool:
    """Write a cache's file; returns whether that was possible."""
    try:
        write_text_atomically(path, text)
    except OSError as error:
        _LOG.debug("%s is not kept: %s.", path, error.strerror or error)
        return False
    return True


def kept_text(path: Path, text: str) -> Path:
    """A file with `text`: `path`, or where that cannot be written, one that ends with the process."""
    try:
        if path.read_bytes() == text.encode():
            return path
    except OSError:
        pass  # it is written now
    if remember(path, text):
        return path
    passing = _passing_folder() / path.name
    write_text_atomically(passing, text)
    return passing


@functools.cache
def _passing_folder() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="quant-assets-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder
