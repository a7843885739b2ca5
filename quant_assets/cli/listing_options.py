"""Options shared by the commands on listings, and the summary of a run."""

from pathlib import Path
from typing import Annotated

import typer
from pydantic import Field
from rich.table import Table

from quant_assets.cli.options import CommandOptions
from quant_assets.cli.output import message_console
from quant_assets.listings.pipeline import PipelineOptions, PipelineResult
from quant_assets.listings.quarantine import QuarantineReason

Inputs = Annotated[
    list[Path],
    typer.Option("--input", help="File or folder of listings (CSV, JSON, Parquet); repeatable."),
]
Output = Annotated[Path, typer.Option(help="CSV, JSON or Parquet file for the enriched rows.")]
QuantizeMetric = Annotated[
    bool, typer.Option("--quantize-metric", help="Add the quantization capacity columns.")
]


class CapacityOptions(CommandOptions):
    """Inputs of the capacity columns; by default those of `heuristics.yaml`."""

    bits: Annotated[
        str | None,
        typer.Option(
            help="Bit widths of the capacity columns, separated by commas.",
            show_default="those of heuristics.yaml: 4",
        ),
    ] = None
    overhead_gb: Annotated[
        float | None,
        typer.Option(
            help="GB of each GPU kept for the system, the kernels and the runtime.",
            min=1,
            max=2,
            show_default="that of heuristics.yaml: 2",
        ),
    ] = None

    def bit_widths(self) -> tuple[int, ...] | None:
        """The bit widths, each once; raises `typer.BadParameter` for anything else."""
        if self.bits is None:
            return None
        try:
            return tuple(dict.fromkeys(int(part) for part in self.bits.split(",")))
        except ValueError as error:
            raise typer.BadParameter(f"{self.bits!r} is not a list such as 4,8.") from error


class ColumnOptions(CapacityOptions):
    """Which columns are added."""

    heuristics: Annotated[
        list[str],
        typer.Option("--heuristic", help="Add the columns of this strategy; repeatable."),
    ] = Field(default_factory=list)
    force: Annotated[
        bool, typer.Option("--force", help="Replace columns that the input already has.")
    ] = False

    def pipeline_options(self, *, quantize_metric: bool) -> PipelineOptions:
        """The options of one run of the pipeline."""
        return PipelineOptions(
            quantize_metric=quantize_metric,
            bits=self.bit_widths(),
            overhead_gb=self.overhead_gb,
            heuristics=tuple(self.heuristics),
            force=self.force,
        )


def print_result(result: PipelineResult) -> None:
    """Summarize on standard error how many rows went where, and the files written."""
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
