"""`quant-assets decision-report`: measurements, offers and staleness on one page."""

from pathlib import Path
from typing import Annotated

import typer
from pydantic import BaseModel

from quant_assets.cli.presentation import Reply
from quant_assets.cli.verbosity import notify
from quant_assets.settings import get_settings


class DecisionReportDocument(BaseModel):
    """The files that were written."""

    reports: list[Path]


def decision_report(
    output: Annotated[
        Path | None,
        typer.Option(help="Where to write, as .html and .md; by default the data root's reports."),
    ] = None,
) -> Reply[DecisionReportDocument]:
    """Report from the marts what was measured, what to rent or buy for it, and what is stale."""
    from quant_assets.report.decision.build import build_decision_report, write_decision_report

    settings = get_settings()
    report = build_decision_report(settings)
    written = write_decision_report(report, output or settings.decision_report)
    return Reply(DecisionReportDocument(reports=list(written)), _show)


def _show(document: DecisionReportDocument) -> None:
    for path in document.reports:
        notify(f"report: {path}")
