"""`quant-assets info`: what a model on disk is."""

import json
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.table import Table

from quant_assets.artifacts.manifest import manifest_of
from quant_assets.cli.output import output_console, print_json
from quant_assets.models.inspection import inspect_model
from quant_assets.models.stored_quantization import detect_quantization


def info(
    path: Annotated[
        Path, typer.Argument(help="Model folder, GGUF file or artifact folder.", exists=True)
    ],
    output_format: Annotated[
        Literal["human", "json"], typer.Option("--format", help="How to print.")
    ] = "human",
) -> None:
    """Format, bits per weight, architecture, parameters, sizes and, for an artifact, its manifest.

    Only headers are read. Exit code 3: it is no model, or damaged.
    """
    facts = _facts(path)
    if output_format == "json":
        print_json(json.dumps(facts, indent=2, default=str))
        return
    table = Table(show_header=False, box=None)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for name, value in facts.items():
        shown = (
            ", ".join(f"{k} {v}" for k, v in value.items()) if isinstance(value, dict) else value
        )
        table.add_row(
            name.replace("_", " "), f"{shown:,}" if isinstance(shown, int) else str(shown)
        )
    output_console().print(table)


def _facts(path: Path) -> dict[str, Any]:
    manifest = manifest_of(path)
    model = path
    if path.is_dir() and manifest is not None and manifest.job.target_format == "gguf":
        model = path / manifest.files[0].name
    stored = detect_quantization(model)
    shape = inspect_model(model)
    weights_bytes = shape.weights_bytes or 0
    facts: dict[str, Any] = {
        "path": str(path),
        "format": stored.format,
        "intent": stored.method,
        "architecture": shape.architecture,
        "parameters": shape.n_parameters,
        "layers": shape.n_layers,
        "context_length": shape.context_length,
        "bits_per_weight": round(8 * weights_bytes / shape.n_parameters, 4),
        "weights_bytes": weights_bytes,
        "tensors_by_type": shape.weight_types,
    }
    if manifest is not None:
        facts |= {
            "job": manifest.job_id,
            "status": manifest.status,
            "level": manifest.job.level,
            "settings": manifest.job.parameters,
            "source": manifest.source_provenance,
            "perplexity": manifest.perplexity,
            "made_at": manifest.created_at.isoformat(),
            "made_with": manifest.engine,
        }
    return facts
