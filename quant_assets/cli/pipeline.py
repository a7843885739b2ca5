"""`quant-assets pipeline`: listings end to end, with the insight report."""

from pathlib import Path
from typing import Annotated

import typer

from quant_assets.cli.listing_options import (
    ColumnOptions,
    Inputs,
    Output,
    QuantizeMetric,
    print_result,
)
from quant_assets.cli.options import takes_models
from quant_assets.cli.output import print_line
from quant_assets.listings.pipeline import run_pipeline
from quant_assets.listings.store import ListingStore
from quant_assets.report.listings.page import build_listing_report, write_listing_report
from quant_assets.settings import get_settings


@takes_models
def pipeline(
    inputs: Inputs,
    output: Output,
    *,
    quantize_metric: QuantizeMetric = False,
    report: Annotated[
        Path | None, typer.Option(help="Write the insight report here, as .html and .md.")
    ] = None,
    columns: ColumnOptions,
) -> None:
    """Read, normalize and enrich listings; files that did not change are not parsed again.

    Quarantined rows go to OUTPUT with ".quarantine" before the extension, with their reasons.
    """
    options = columns.pipeline_options(quantize_metric=quantize_metric)
    cache = ListingStore(get_settings().listings).parse_cache
    result = run_pipeline(inputs, output, options, cache=cache)
    print_result(result)
    if report is not None:
        page = build_listing_report(result)
        for path in write_listing_report(page, report):
            print_line(f"report: {path}", err=True)
