"""The `quant-assets` command: assembles the subcommands and prints errors without a traceback."""

import io
import logging
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

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
from quant_assets.cli.presentation import (
    CommandLine,
    ErrorDocument,
    Presentation,
    begin_answer,
    requested_presentation,
    show_error,
    show_error_document,
)
from quant_assets.cli.quantize import quantize
from quant_assets.cli.recommend import recommend
from quant_assets.cli.report import report
from quant_assets.cli.speed import speed
from quant_assets.cli.sql import sql
from quant_assets.cli.types import types
from quant_assets.cli.ui import ui
from quant_assets.cli.validate import validate
from quant_assets.cli.verbosity import configure_logging
from quant_assets.errors import ExitCode, QuantAssetsError, UsageFault, explained
from quant_assets.escaping import terminal_text
from quant_assets.processes.interruption import prompt_end, received_signal

_LOG = logging.getLogger(__name__)


class CommandGroup(TyperGroup):
    """The subcommands, and what becomes of usage errors.

    They quote arguments, which may be file names, so they are escaped. Where JSON was asked for,
    before or after the fault, they become a `UsageFault`.
    """

    _as_json = False

    def make_context(self, info_name: Any, args: list[str], *more: Any, **extra: Any) -> Any:
        """Create the context of one call, see click."""
        self._as_json = requested_presentation(args).as_json
        with self._usage_errors():
            return super().make_context(info_name, args, *more, **extra)

    def invoke(self, ctx: Any) -> Any:
        """Run the named command, see click."""
        with self._usage_errors():
            return super().invoke(ctx)

    @contextmanager
    def _usage_errors(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            message = getattr(error, "message", None)
            if not isinstance(message, str):
                raise
            if self._as_json:
                raise _usage_fault(error) from error
            error.message = terminal_text(message)  # type: ignore[attr-defined]
            raise


def _usage_fault(error: Any) -> UsageFault:
    """The three-part form of Typer's usage error."""
    context = getattr(error, "ctx", None)
    command = context.command_path if context is not None else "quant-assets"
    return UsageFault(
        f"The command line of `{command}` cannot be used.",
        str(error.format_message()),
        f"`{command} --help` lists the arguments and options.",
    )


app = CommandLine(
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
app.add_typer(speed, name="speed")
app.command()(sql)
app.command()(types)
app.command()(ui)
app.command()(validate)


def main() -> None:
    """Entry point: exits with one of the codes of `ExitCode`."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # Characters that a terminal without UTF-8 lacks are escaped instead of raising an error.
            stream.reconfigure(errors="backslashreplace")
    presentation = requested_presentation(sys.argv[1:])
    configure_logging(presentation.verbosity)
    begin_answer()
    with prompt_end():
        try:
            _run(presentation)
        finally:
            number = received_signal()
            if number is not None:
                _show_end(number, presentation)
                sys.exit(128 + number)


def _run(presentation: Presentation) -> None:
    try:
        with _flushed_output():
            app()
    except Exception as raised:
        exit_code = _report(raised, presentation)
    else:
        return
    # Outside of the handler: the error's frames would live until the interpreter has shut down.
    sys.exit(exit_code)


def _report(raised: Exception, presentation: Presentation) -> int:
    """Show an error to the user and return its exit code."""
    error = explained(raised) or _unexpected(raised)
    # A signal makes workers fail; the command's end by the signal is the one document then.
    if received_signal() is None or not presentation.as_json:
        show_error(error, presentation)
    _LOG.debug("the error's traceback", exc_info=raised)
    return error.exit_code


def _unexpected(error: Exception) -> QuantAssetsError:
    return QuantAssetsError(
        "The command failed unexpectedly.",
        f"{type(error).__name__}: {error}",
        "Run it again with `--verbosity debug`, which shows the traceback, and report that.",
    )


def _show_end(number: int, presentation: Presentation) -> None:
    """Say that a signal ended the command."""
    name = signal.Signals(number).name
    if presentation.as_json:
        show_error_document(
            ErrorDocument(
                what=f"The command was ended by {name}.",
                why="The signal asked it to stop.",
                next_step="Run the same command again; finished work is kept.",
                exit_code=ExitCode(128 + number),
            )
        )
    else:
        message_console().print(f"ended by {name}; finished work is kept")


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
