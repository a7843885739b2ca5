"""The `quant-assets` command: assembles the subcommands and prints errors without a traceback."""

import io
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import typer
from typer.core import TyperGroup

from quant_assets.cli.bench import bench
from quant_assets.cli.collect import collect
from quant_assets.cli.convert import convert
from quant_assets.cli.decision_report import decision_report
from quant_assets.cli.demo import demo
from quant_assets.cli.enrich import enrich
from quant_assets.cli.estimate import estimate
from quant_assets.cli.imatrix import imatrix
from quant_assets.cli.info import info
from quant_assets.cli.intent import intent
from quant_assets.cli.output import message_console
from quant_assets.cli.pipeline import pipeline
from quant_assets.cli.quantize import quantize
from quant_assets.cli.recommend import recommend
from quant_assets.cli.report import report
from quant_assets.cli.sql import sql
from quant_assets.cli.types import types
from quant_assets.cli.ui import ui
from quant_assets.cli.validate import validate
from quant_assets.errors import explained
from quant_assets.escaping import terminal_text
from quant_assets.processes.interruption import prompt_end, received_signal
from quant_assets.redaction import redact


class CommandGroup(TyperGroup):
    """The subcommands; usage errors quote arguments, which may be file names, so they are escaped."""

    def make_context(self, *arguments: Any, **extra: Any) -> Any:
        """Create the context of one call, see click."""
        with _escaped_usage_errors():
            return super().make_context(*arguments, **extra)

    def invoke(self, ctx: Any) -> Any:
        """Run the named command, see click."""
        with _escaped_usage_errors():
            return super().invoke(ctx)


@contextmanager
def _escaped_usage_errors() -> Iterator[None]:
    try:
        yield
    except Exception as error:
        message = getattr(error, "message", None)
        if isinstance(message, str):
            error.message = terminal_text(message)  # type: ignore[attr-defined]
        raise


app = typer.Typer(
    name="quant-assets",
    cls=CommandGroup,
    help="Find the quantized variant of a model and the GPU to run it on, by speed, quality and cost.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


@app.callback()
def root() -> None:
    """Find the quantized variant of a model and the GPU to run it on, by speed, quality and cost."""


app.add_typer(bench, name="bench")
app.command()(collect)
app.command(name="decision-report")(decision_report)
app.command()(convert)
app.command()(demo)
app.command()(enrich)
app.command()(estimate)
app.command()(info)
app.command()(intent)
app.command()(pipeline)
app.command()(recommend)
app.command()(report)
app.command()(imatrix)
app.command()(quantize)
app.command()(sql)
app.command()(types)
app.command()(ui)
app.command()(validate)


def main() -> None:
    """Entry point: exit 0 on success, 2 on wrong usage, else the error's own exit code.

    A command ended by a signal exits with 128 plus the signal's number, 130 for Ctrl-C.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # Characters that a terminal without UTF-8 lacks are escaped instead of raising an error.
            stream.reconfigure(errors="backslashreplace")
    with prompt_end():
        try:
            _run()
        finally:
            number = received_signal()
            if number is not None:
                message_console().print(
                    f"ended by {signal.Signals(number).name}; finished work is kept"
                )
                sys.exit(128 + number)


def _run() -> None:
    try:
        with _flushed_output():
            app()
    except Exception as raised:
        error = explained(raised)
        if error is None:
            raise
        console = message_console()
        console.print("error:", style="bold red", end=" ")
        console.print(redact(error.what))
        console.print(redact(error.why))
        console.print(redact(error.next_step), style="bold")
        sys.exit(error.exit_code)


@contextmanager
def _flushed_output() -> Iterator[None]:
    """Flush standard output at the end, so that a full disk is an error like any other."""
    try:
        yield
    finally:
        try:
            sys.stdout.flush()
        except OSError:
            # Python would flush again at exit and report the error in its own way.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise


if __name__ == "__main__":
    main()
