"""`quant-assets report`: value for money of the listed offers, as Markdown and HTML."""

from pathlib import Path
from typing import Annotated

import typer

from quant_assets.cli.listing_options import (
    CapacityOptions,
    ListingsDocument,
    QuantizeMetric,
    listings_document,
    show_listings,
)
from quant_assets.cli.options import takes_models
from quant_assets.cli.presentation import Reply
from quant_assets.listings.pipeline import PipelineOptions, run_pipeline
from quant_assets.listings.store import ListingStore
from quant_assets.report.listings.page import build_listing_report, write_listing_report
from quant_assets.settings import get_settings


@takes_models
def report(
    inputs: Annotated[
        list[Path],
        typer.Option("--input", help="Listings; by default the project's listing folder."),
    ] = [],  # noqa: B006, typer reads the default only
    output: Annotated[
        Path | None,
        typer.Option(help="Where to write, as .html and .md; by default the data root's reports."),
    ] = None,
    *,
    quantize_metric: QuantizeMetric = False,
    capacity: CapacityOptions,
) -> Reply[ListingsDocument]:
    """Write the insight report: price per GB and per model slot, best offers, quarantine."""
    settings = get_settings()
    result = run_pipeline(
        inputs or [settings.listings_drop_folder],
        options=PipelineOptions(
            quantize_metric=quantize_metric,
            bits=capacity.bit_widths(),
            overhead_gb=capacity.overhead_gb,
            force=True,
        ),
        cache=ListingStore(settings.listings).parse_cache,
    )
    target = output or settings.home / "reports" / "listings.html"
    page = build_listing_report(result)
    return Reply(listings_document(result, write_listing_report(page, target)), show_listings)
