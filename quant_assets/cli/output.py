"""Standard output: where answers go."""

from rich.console import Console

PIPED_WIDTH = 10_000
"""Columns; a pipe has no width of its own, and no row should be cut."""


def output_console() -> Console:
    """Tables fit a terminal; in a pipe or a file no cell is cut."""
    console = Console(highlight=False, markup=False)
    if not console.is_terminal:
        console.width = PIPED_WIDTH
    return console
