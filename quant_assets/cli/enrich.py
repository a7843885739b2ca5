"""`quant-assets enrich`: add GPU specifications to listings."""

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


@takes_models
def enrich(
    inputs: Inputs,
    output: Output,
    *,
    quantize_metric: QuantizeMetric = False,
    columns: ColumnOptions,
) -> Reply[ListingsDocument]:
    """Recognize the GPU in each listing and add its specifications; quarantine the rest.

    Quarantined rows go to OUTPUT with ".quarantine" before the extension, with their reasons.
    """
    options = columns.pipeline_options(quantize_metric=quantize_metric)
    return Reply(listings_document(run_pipeline(inputs, output, options)), show_listings)
