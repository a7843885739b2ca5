"""Standard output and standard error: where answers and messages go.

Everything that a command prints goes through this module, so that nothing in a file, a server's
answer or another program's message steers the terminal or is taken for markup.
"""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import typer
from rich.console import Console
from rich.text import Text

from quant_assets.escaping import json_text, terminal_line, terminal_text

PIPED_WIDTH = 10_000
"""Columns; a pipe has no width of its own, and no row should be cut."""


class LiteralConsole(Console):
    """A console that shows strings as they are: no markup, no emoji codes, no control characters.

    It holds for whatever rich makes of a string: lines, cells, headings and titles of tables.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(markup=False, emoji=False, highlight=False, **options)

    def render_str(self, text: str, **options: Any) -> Text:
        """The string as rich shows it, with control characters as visible escapes."""
        return super().render_str(terminal_text(text), **options)


def output_console() -> LiteralConsole:
    """Standard output. Tables fit a terminal; in a pipe or a file no cell is cut."""
    console = LiteralConsole()
    if not console.is_terminal:
        console.width = PIPED_WIDTH
    return console


def message_console() -> LiteralConsole:
    """Standard error; lines are not broken."""
    return LiteralConsole(stderr=True, soft_wrap=True)


def print_line(text: str, *, err: bool = False) -> None:
    """Print one line (or more, where `text` has line feeds) to standard output or error."""
    typer.echo(terminal_text(text), err=err)


def print_json(document: str) -> None:
    """Print a JSON document; its value is unchanged."""
    typer.echo(json_text(document))


def print_path(path: Path) -> None:
    """Print a path alone, for scripts: byte by byte in a pipe, visibly on a terminal."""
    if sys.stdout.isatty():
        typer.echo(terminal_line(str(path)))
    else:
        typer.echo(os.fsencode(path))


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
