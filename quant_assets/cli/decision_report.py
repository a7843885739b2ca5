"""`quant-assets decision-report`: measurements, offers and staleness on one page."""

from pathlib import Path
from typing import Annotated

import typer

from quant_assets.cli.output import print_line
from quant_assets.settings import get_settings


def decision_report(
    output: Annotated[
        Path | None,
        typer.Option(help="Where to write, as .html and .md; by default the data root's reports."),
    ] = None,
) -> None:
    """Report from the marts what was measured, what to rent or buy for it, and what is stale."""
    from quant_assets.report.decision.build import build_decision_report, write_decision_report

    settings = get_settings()
    report = build_decision_report(settings)
    for path in write_decision_report(report, output or settings.decision_report):
        print_line(f"report: {path}", err=True)
