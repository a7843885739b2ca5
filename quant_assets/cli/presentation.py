"""How every command answers: `--format`, `--verbosity`, one document, one log of operations.

A command returns a `Reply`, its document and the function that shows it to people. `CommandLine`
adds the two options to each command, prints the reply in the format asked for, and logs when the
operation began and how it ended. In JSON, standard output carries one document and nothing else: the
command's, or an `ErrorDocument` in its place.
"""

import inspect
import json
import logging
import math
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import wraps
from typing import Annotated, Any, Generic, Literal, TypeVar, get_args

import typer
from pydantic import BaseModel, ConfigDict

from quant_assets.cli.options import set_parameters
from quant_assets.cli.output import message_console, print_json
from quant_assets.cli.verbosity import Verbosity, configure_logging
from quant_assets.errors import QuantAssetsError
from quant_assets.redaction import redact

_LOG = logging.getLogger(__name__)

OutputFormat = Literal["human", "json"]
FORMAT = "--format"
VERBOSITY = "--verbosity"
# Not `context`, which is the name of an option of several commands.
_CONTEXT = "typer_context"

Document = TypeVar("Document", bound=BaseModel)
_Command = TypeVar("_Command", bound=Callable[..., Any])

# Set from the moment a document is being written to standard output.
_document_begun = threading.Event()


class ErrorDocument(BaseModel):
    """An error as JSON: what happened, why, what to do next, and the exit code of the command."""

    model_config = ConfigDict(frozen=True)

    what: str
    why: str
    next_step: str
    exit_code: int


@dataclass(frozen=True)
class Presentation:
    """The values of `--format` and `--verbosity`."""

    output_format: OutputFormat = "human"
    verbosity: Verbosity = Verbosity.NORMAL

    @property
    def as_json(self) -> bool:
        """Whether standard output is one JSON document."""
        return self.output_format == "json"


@dataclass(frozen=True)
class Reply(Generic[Document]):
    """A command's answer: its JSON document, and how people are shown it.

    `afterwards` runs once the answer is out: a check of it, or a server that runs until stopped.
    """

    document: Document
    show: Callable[[Document], None]
    afterwards: Callable[[], None] | None = None


class CommandLine(typer.Typer):
    """Commands that return a `Reply`, each with `--format` and `--verbosity`."""

    def command(self, *names: Any, **settings: Any) -> Callable[[_Command], _Command]:
        """Register a command, see Typer."""
        return _registering(super().command(*names, **settings))

    def callback(self, **settings: Any) -> Callable[[_Command], _Command]:
        """Register what runs before, or without, a subcommand, see Typer."""
        return _registering(super().callback(**settings))


def requested_presentation(arguments: Sequence[str]) -> Presentation:
    """The presentation that a command line asks for, readable even where the rest is wrong.

    The last valid value counts, as it does for the parser.
    """
    found: dict[str, str] = {}
    allowed = {FORMAT: get_args(OutputFormat), VERBOSITY: [*Verbosity]}
    words = iter(arguments)
    for word in words:
        if word == "--":
            break
        name, equals, value = word.partition("=")
        if name in allowed:
            value = value if equals else next(words, "")
            if value in allowed[name]:
                found[name] = value
    return Presentation(
        "json" if found.get(FORMAT) == "json" else "human",
        Verbosity(found.get(VERBOSITY, Verbosity.NORMAL)),
    )


def show_error(error: QuantAssetsError, presentation: Presentation) -> None:
    """Show an error in the format asked for, without secrets.

    For people it goes to standard error. As JSON it takes the place of the command's document on
    standard output; standard error gets it only if that document was already begun.
    """
    document = ErrorDocument(
        what=redact(error.what),
        why=redact(error.why),
        next_step=redact(error.next_step),
        exit_code=error.exit_code,
    )
    if presentation.as_json:
        show_error_document(document)
        return
    console = message_console()
    console.print("error:", style="bold red", end=" ")
    console.print(document.what)
    console.print(document.why)
    console.print(document.next_step, style="bold")


def show_error_document(document: ErrorDocument) -> None:
    """Print an error as JSON in place of the command's document."""
    print_json(_json(document), err=_document_begun.is_set())


def begin_answer() -> None:
    """Forget the document of an earlier command line in this process."""
    _document_begun.clear()


def present(command: Callable[..., Reply[Any] | None]) -> Callable[..., None]:
    """Add `--format` and `--verbosity` to a command and print its reply.

    Each is also taken from the command before it: `quant-assets --format json info X`. A parameter
    `verbosity` of the command receives the value.
    """
    signature = inspect.signature(command, eval_str=True)
    own = signature.parameters.values()
    own_context = next((item.name for item in own if item.annotation is typer.Context), None)
    takes_verbosity = "verbosity" in signature.parameters

    @wraps(command)
    def with_presentation(**values: Any) -> None:
        context = values.pop(_CONTEXT) if own_context is None else values[own_context]
        inherited = context.obj if isinstance(context.obj, Presentation) else Presentation()
        asked = Presentation(
            values.pop("output_format") or inherited.output_format,
            values.pop("verbosity") or inherited.verbosity,
        )
        context.obj = asked
        configure_logging(asked.verbosity)
        if takes_verbosity:
            values["verbosity"] = asked.verbosity
        if context.invoked_subcommand is not None:
            command(**values)
            return
        with _logged(context.command_path):
            reply = command(**values)
            if reply is None:
                return
            _print(reply, asked)
            if reply.afterwards is not None:
                reply.afterwards()

    parameters = [
        item.replace(kind=inspect.Parameter.KEYWORD_ONLY)
        for item in own
        if item.name != "verbosity"
    ]
    if own_context is None:
        parameters.append(_parameter(_CONTEXT, typer.Context, inspect.Parameter.empty))
    parameters.append(
        _parameter(
            "output_format",
            Annotated[
                OutputFormat | None,
                typer.Option(
                    FORMAT,
                    show_default="human",
                    help="Answer for people, or one JSON document on standard output.",
                ),
            ],
            None,
        )
    )
    parameters.append(
        _parameter(
            "verbosity",
            Annotated[
                Verbosity | None,
                typer.Option(
                    VERBOSITY, show_default="normal", help="How much to show on standard error."
                ),
            ],
            None,
        )
    )
    set_parameters(with_presentation, signature.replace(parameters=parameters))
    return with_presentation


def _registering(register: Callable[[Any], Any]) -> Callable[[_Command], _Command]:
    def add(command: _Command) -> _Command:
        register(present(command))
        return command

    return add


def _parameter(name: str, annotation: Any, default: Any) -> inspect.Parameter:
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation
    )


@contextmanager
def _logged(operation: str) -> Iterator[None]:
    """Log the start and the end of an operation, and how long it took."""
    _LOG.info("%s: started", operation)
    started = time.monotonic()
    try:
        yield
    except BaseException as error:
        _LOG.info(
            "%s: %s after %.1f s", operation, type(error).__name__, time.monotonic() - started
        )
        raise
    _LOG.info("%s: done in %.1f s", operation, time.monotonic() - started)


def _print(reply: Reply[Any], asked: Presentation) -> None:
    if asked.as_json:
        text = _json(reply.document)
        _document_begun.set()
        print_json(text)
    else:
        reply.show(reply.document)


def _json(document: BaseModel) -> str:
    """The document as JSON; what JSON has no number for (not a number, infinity) is null."""
    # json.dumps also takes file names that are not UTF-8, which pydantic's own writer refuses.
    return json.dumps(_finite(document.model_dump(mode="json")), indent=2, allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {name: _finite(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return value
