"""The `quant-assets` command: assembles the commands and prints errors without a traceback."""

import sys

import typer
from rich.console import Console

from quant_assets.errors import QuantAssetsError
from quant_assets.redaction import redact

app = typer.Typer(
    name="quant-assets",
    help="Which quantized variant of a model, on which GPU, at what speed, quality and cost.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


@app.callback()
def root() -> None:
    """Which quantized variant of a model, on which GPU, at what speed, quality and cost."""


def main() -> None:
    """Entry point: exit 0 on success, 2 on wrong usage, else the error's own exit code."""
    try:
        app()
    except QuantAssetsError as error:
        console = Console(stderr=True, soft_wrap=True, highlight=False)
        console.print("error:", style="bold red", end=" ")
        console.print(redact(error.what), markup=False)
        console.print(redact(error.why), markup=False)
        console.print(redact(error.next_step), style="bold", markup=False)
        sys.exit(error.exit_code)
