"""Options shared by the commands on listings, and the summary of a run."""

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import typer
from pydantic import BaseModel, Field

from quant_assets.cli.options import CommandOptions
from quant_assets.cli.verbosity import notify
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


class ListingsDocument(BaseModel):
    """Where the rows of listings went, and the files written.

    Every row is enriched, quarantined or a collapsed duplicate. `match_rate` is the share (0 to 1)
    of rows with a known GPU and price, null without rows; `quarantine_reasons` counts rows.
    """

    rows: int
    enriched: int
    quarantined: int
    collapsed_duplicates: int
    match_rate: float | None
    quarantine_reasons: dict[str, int]
    output: Path | None
    quarantine: Path | None
    reports: list[Path]


def listings_document(result: PipelineResult, reports: Iterable[Path] = ()) -> ListingsDocument:
    """The document of one run of the pipeline."""
    counts = result.counts
    return ListingsDocument(
        rows=counts["rows"] + counts["rejected"],
        enriched=counts["enriched"],
        quarantined=counts["quarantined"],
        collapsed_duplicates=counts["collapsed_duplicates"],
        match_rate=result.normalized.match_rate,
        quarantine_reasons=result.normalized.quarantine_counts,
        output=result.output,
        quarantine=result.quarantine,
        reports=list(reports),
    )


def show_listings(document: ListingsDocument) -> None:
    """Summarize on standard error how many rows went where, and the files written."""
    rate = document.match_rate
    shown_rate = "" if rate is None else f", match rate {rate:.1%}"
    notify(
        f"{document.rows} rows: {document.enriched} enriched, {document.quarantined} quarantined, "
        f"{document.collapsed_duplicates} duplicates collapsed{shown_rate}"
    )
    for reason, number in document.quarantine_reasons.items():
        notify(f"quarantined: {number} {reason}: {QuarantineReason(reason).words}")
    for label, path in (("offers", document.output), ("quarantine", document.quarantine)):
        if path is not None:
            notify(f"{label}: {path}")
    for path in document.reports:
        notify(f"report: {path}")
