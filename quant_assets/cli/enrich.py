"""`quant-assets enrich`: listings with the figures of their GPUs."""

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
from quant_assets.listings.pipeline import run_pipeline


def enrich(
    inputs: Inputs,
    output: Annotated[Path, typer.Option(help="CSV, JSON or Parquet file for the enriched rows.")],
    quantize_metric: QuantizeMetric = False,
    bits: Bits = "4",
    overhead_gb: OverheadGb = 2.0,
    heuristics: Heuristics = [],  # noqa: B006, typer reads the default only
    force: Force = False,
) -> None:
    """Recognize the GPU of each listing and add its figures; set the rest aside with reasons.

    Rows set aside go to OUTPUT with ".quarantine" before the extension.
    """
    options = make_options(quantize_metric, bits, overhead_gb, heuristics, force)
    print_result(run_pipeline(inputs, output, options))
