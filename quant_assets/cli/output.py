"""Standard output for answers, standard error for messages.

Commands print through this module alone, so that nothing in a file, a server's answer or another
program's message controls the terminal or is interpreted as markup.
"""

import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from quant_assets.escaping import json_text, terminal_line, terminal_text

PIPED_WIDTH = 10_000
"""Columns; a pipe has no width of its own, and rows must not be truncated."""


class LiteralConsole(Console):
    """A console that prints strings literally: no markup, no emoji codes, no control characters.

    This covers everything rich renders from a string: lines, and cells, headings and titles of tables.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(markup=False, emoji=False, highlight=False, **options)

    def render_str(self, text: str, **options: Any) -> Text:
        """Render the string with control characters as visible escapes."""
        return super().render_str(terminal_text(text), **options)


def output_console() -> LiteralConsole:
    """Standard output; tables fit a terminal, and in a pipe or a file no cell is truncated."""
    console = LiteralConsole()
    if not console.is_terminal:
        console.width = PIPED_WIDTH
    return console


def message_console() -> LiteralConsole:
    """Standard error; lines are not wrapped."""
    return LiteralConsole(stderr=True, soft_wrap=True)


def facts_table(facts: Mapping[str, str]) -> Table:
    """Names and values, one pair per row."""
    table = Table(show_header=False, box=None)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for name, value in facts.items():
        table.add_row(name, value)
    return table


def print_line(text: str) -> None:
    """Print one line (or more, where `text` has line feeds) to standard output."""
    typer.echo(terminal_text(text))


def print_json(document: str, *, err: bool = False) -> None:
    """Print a JSON document without changing its value, to standard output or error."""
    typer.echo(json_text(document), err=err)


def print_path(path: Path) -> None:
    """Print a path alone, for scripts: the exact bytes in a pipe, escaped on a terminal."""
    if sys.stdout.isatty():
        typer.echo(terminal_line(str(path)))
    else:
        typer.echo(os.fsencode(path))


@contextmanager
def standard_output_hidden() -> Iterator[None]:
    """Redirect standard output to the null device, also for child processes."""
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
