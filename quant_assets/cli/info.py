"""`quant-assets info`: describe a model on disk."""

from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from quant_assets.artifacts.description import ModelDescription, describe_model
from quant_assets.cli.output import facts_table, output_console
from quant_assets.cli.presentation import Reply


def info(
    path: Annotated[
        Path, typer.Argument(help="Model folder, GGUF file or artifact folder.", exists=True)
    ],
) -> Reply[ModelDescription]:
    """Format, bits per weight, architecture, parameters, sizes and, for an artifact, its manifest.

    Only headers are read. Exit code 3: not a model, or damaged.
    """
    return Reply(describe_model(path), _show)


def _show(model: ModelDescription) -> None:
    facts = model.model_dump()
    if model.job is None:
        facts = {name: facts[name] for name in model.model_fields_set}
    table = facts_table({name.replace("_", " "): _text(value) for name, value in facts.items()})
    output_console().print(table)


def _text(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {item}" for name, item in value.items())
    if isinstance(value, datetime):
        return value.isoformat()
    return f"{value:,}" if isinstance(value, int) else str(value)
