"""Options that the commands on listings share, and how they report a run."""

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from quant_assets.cli.output import message_console
from quant_assets.listings.pipeline import PipelineOptions, PipelineResult
from quant_assets.listings.quarantine import QuarantineReason

Inputs = Annotated[
    list[Path],
    typer.Option("--input", help="A file or folder of listings (CSV, JSON, Parquet); repeatable."),
]
QuantizeMetric = Annotated[
    bool, typer.Option("--quantize-metric", help="Add the quantization capacity columns.")
]
Bits = Annotated[str, typer.Option(help="Bit widths of the capacity columns, separated by commas.")]
OverheadGb = Annotated[
    float, typer.Option(help="GB of each GPU that models do not get (1 to 2).", min=0)
]
Heuristics = Annotated[
    list[str], typer.Option("--heuristic", help="Add the columns of this strategy; repeatable.")
]
Force = Annotated[bool, typer.Option("--force", help="Replace columns that the input has already.")]


def parse_bits(text: str) -> tuple[int, ...]:
    """The bit widths in `text`, each once; raises `typer.BadParameter` for anything else."""
    try:
        return tuple(dict.fromkeys(int(part) for part in text.split(",")))
    except ValueError as error:
        raise typer.BadParameter(f"{text!r} is not a list such as 4,8.") from error


def make_options(
    quantize_metric: bool, bits: str, overhead_gb: float, heuristics: list[str], force: bool
) -> PipelineOptions:
    """The options of one run as the domain code takes them."""
    return PipelineOptions(
        quantize_metric=quantize_metric,
        bits=parse_bits(bits),
        overhead_gb=overhead_gb,
        heuristics=tuple(heuristics),
        force=force,
    )


def print_result(result: PipelineResult) -> None:
    """Say on stderr what became of the rows and where they are."""
    console = message_console()
    counts, rate = result.counts, result.normalized.match_rate
    shown_rate = "" if rate is None else f", match rate {rate:.1%}"
    console.print(
        f"{counts['rows'] + counts['rejected']} rows: {counts['enriched']} enriched, "
        f"{counts['quarantined']} quarantined, {counts['collapsed_duplicates']} duplicates collapsed"
        f"{shown_rate}"
    )
    if result.normalized.quarantine_counts:
        table = Table("rows", "reason", "meaning", title="Quarantine")
        for reason, number in result.normalized.quarantine_counts.items():
            table.add_row(str(number), reason, QuarantineReason(reason).words)
        console.print(table)
    for label, path in (("offers", result.output), ("quarantine", result.quarantine)):
        if path is not None:
            console.print(f"{label}: {path}")
