"""`quant-assets pipeline`: listings end to end, with the insight report."""

from pathlib import Path
from typing import Annotated

import typer

from quant_assets.cli.listing_options import (
    ColumnOptions,
    Inputs,
    ListingsDocument,
    Output,
    QuantizeMetric,
    listings_document,
    show_listings,
)
from quant_assets.cli.options import takes_models
from quant_assets.cli.presentation import Reply
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
) -> Reply[ListingsDocument]:
    """Read, normalize and enrich listings; files that did not change are not parsed again.

    Quarantined rows go to OUTPUT with ".quarantine" before the extension, with their reasons.
    """
    options = columns.pipeline_options(quantize_metric=quantize_metric)
    cache = ListingStore(get_settings().listings).parse_cache
    result = run_pipeline(inputs, output, options, cache=cache)
    if report is None:
        return Reply(listings_document(result), show_listings)
    page = build_listing_report(result)
    return Reply(listings_document(result, write_listing_report(page, report)), show_listings)
