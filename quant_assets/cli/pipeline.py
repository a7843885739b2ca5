"""`quant-assets pipeline`: listings end to end, with the insight report."""

from pathlib import Path
from typing import Annotated

import typer

from quant_assets.cli.listing_options import (
    Bits,
    Force,
    Heuristics,
    Inputs,
    OverheadGb,
    QuantizeMetric,
    make_options,
    print_result,
)
from quant_assets.cli.output import print_line
from quant_assets.listings.pipeline import run_pipeline
from quant_assets.report.listings.page import build_listing_report, write_listing_report
from quant_assets.settings import get_settings


def pipeline(
    inputs: Inputs,
    output: Annotated[Path, typer.Option(help="CSV, JSON or Parquet file for the enriched rows.")],
    quantize_metric: QuantizeMetric = False,
    report: Annotated[
        Path | None, typer.Option(help="Write the insight report here, as .html and .md.")
    ] = None,
    bits: Bits = "4",
    overhead_gb: OverheadGb = 2.0,
    heuristics: Heuristics = [],  # noqa: B006, typer reads the default only
    force: Force = False,
) -> None:
    """Read, normalize and enrich listings; unchanged files are not parsed again.

    Rows set aside go to OUTPUT with ".quarantine" before the extension.
    """
    options = make_options(quantize_metric, bits, overhead_gb, heuristics, force)
    snapshots = get_settings().listings / "parsed"
    result = run_pipeline(inputs, output, options, snapshots=snapshots)
    print_result(result)
    if report is not None:
        for path in write_listing_report(
            build_listing_report(result, overhead_gb=overhead_gb), report
        ):
            print_line(f"report: {path}", err=True)
