"""Standard output: where answers go."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console

PIPED_WIDTH = 10_000
"""Columns; a pipe has no width of its own, and no row should be cut."""


def output_console() -> Console:
    """Tables fit a terminal; in a pipe or a file no cell is cut."""
    console = Console(highlight=False, markup=False)
    if not console.is_terminal:
        console.width = PIPED_WIDTH
    return console


@contextmanager
def standard_output_unseen() -> Iterator[None]:
    """Take the terminal away from this process's standard output and its children's."""
    sys.stdout.flush()
    terminal = os.dup(1)
    with Path(os.devnull).open("wb") as nowhere:
        os.dup2(nowhere.fileno(), 1)
    try:
        yield
    finally:
        sys.stdout.flush()
        os.dup2(terminal, 1)
        os.close(terminal)
