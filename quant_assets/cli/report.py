"""`quant-assets report`: what the offers' prices buy, as Markdown and HTML."""

from pathlib import Path
from typing import Annotated

import typer

from quant_assets.cli.listing_options import (
    Bits,
    OverheadGb,
    QuantizeMetric,
    make_options,
    print_result,
)
from quant_assets.cli.output import print_line
from quant_assets.listings.pipeline import run_pipeline
from quant_assets.report.listings.page import build_listing_report, write_listing_report
from quant_assets.settings import get_settings


def report(
    inputs: Annotated[
        list[Path],
        typer.Option("--input", help="Listings; default: the project's listing folder."),
    ] = [],  # noqa: B006, typer reads the default only
    output: Annotated[
        Path | None,
        typer.Option(help="Where to write, as .html and .md; default: the data root's reports."),
    ] = None,
    quantize_metric: QuantizeMetric = False,
    bits: Bits = "4",
    overhead_gb: OverheadGb = 2.0,
) -> None:
    """Write the insight report: price per GB and per model slot, best offers, quarantine."""
    settings = get_settings()
    options = make_options(quantize_metric, bits, overhead_gb, [], force=True)
    result = run_pipeline(
        inputs or [settings.listings_drop_folder],
        options=options,
        snapshots=settings.listings / "parsed",
    )
    print_result(result)
    target = output or settings.home / "reports" / "listings.html"
    for path in write_listing_report(build_listing_report(result, overhead_gb=overhead_gb), target):
        print_line(f"report: {path}", err=True)
