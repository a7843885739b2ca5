"""`quant-assets info`: describe a model on disk."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from quant_assets.artifacts.description import describe_model
from quant_assets.cli.options import OutputFormat
from quant_assets.cli.output import facts_table, output_console, print_json


def info(
    path: Annotated[
        Path, typer.Argument(help="Model folder, GGUF file or artifact folder.", exists=True)
    ],
    output_format: OutputFormat = "human",
) -> None:
    """Format, bits per weight, architecture, parameters, sizes and, for an artifact, its manifest.

    Only headers are read. Exit code 3: not a model, or damaged.
    """
    facts = describe_model(path)
    if output_format == "json":
        print_json(json.dumps(facts, indent=2, default=str))
        return
    table = facts_table({name.replace("_", " "): _text(value) for name, value in facts.items()})
    output_console().print(table)


def _text(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {item}" for name, item in value.items())
    return f"{value:,}" if isinstance(value, int) else str(value)
