"""`quant-assets intent`: translate a quantization intent for a serving backend."""

from pathlib import Path
from typing import Annotated

import typer
from pydantic import ValidationError
from rich.table import Table

from quant_assets.cli.options import OutputFormat
from quant_assets.cli.output import LiteralConsole, print_json
from quant_assets.errors import InputError
from quant_assets.gpus.registry import load_registry
from quant_assets.serving.backend import BackendParams, Method
from quant_assets.serving.intent import Backend, UnifiedQuantizationConfig


def intent(
    method: Annotated[Method, typer.Argument(help="The intended quantization.")],
    backend: Annotated[Backend, typer.Option(help="The serving backend.")],
    gpu: Annotated[str | None, typer.Option(help="A GPU of the registry, such as L4.")] = None,
    model: Annotated[
        Path | None,
        typer.Option(
            help="Folder or GGUF file; with `auto`, the method is read from it.", exists=True
        ),
    ] = None,
    weight_only: Annotated[
        bool,
        typer.Option(
            "--weight-only/--activations", help="Keep activations at 16 bits, or quantize them too."
        ),
    ] = True,
    calibration: Annotated[
        str | None, typer.Option(help="Data set for methods that calibrate on activations.")
    ] = None,
    backend_method: Annotated[
        str | None, typer.Option(help="The backend's own name for the method, such as gptq.")
    ] = None,
    output_format: OutputFormat = "human",
) -> None:
    """Translate one intent, such as int4, into a backend's parameters and launch command.

    Exit code 3: the backend or the GPU does not support it; the message names the nearest that does.
    """
    try:
        config = UnifiedQuantizationConfig(
            method=method,
            weight_only=weight_only,
            calibration=calibration,
            backend_method=backend_method,
        )
    except ValidationError as error:
        raise InputError(
            "The intent contradicts itself.",
            f"{error.errors()[0]['msg']}.",
            "Omit --backend-method, or name one that fits the method.",
        ) from error
    # All cards of a family share a generation, which decides what they support.
    card = load_registry().variants(gpu)[0] if gpu else None
    answer = config.to_backend_params(backend, card, model)
    if output_format == "json":
        print_json(answer.model_dump_json(indent=2))
    else:
        _show(answer)


def _show(answer: BackendParams) -> None:
    console = LiteralConsole(soft_wrap=True)
    table = Table(title=f"{answer.method} on {answer.backend}", title_justify="left")
    table.add_column("parameter")
    table.add_column("value")
    for name, value in answer.params.items():
        table.add_row(name, str(value))
    if answer.params:
        console.print(table)
    console.print(answer.launch)
    for note in answer.notes:
        console.print(note)
