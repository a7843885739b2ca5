"""Builds the decision report and writes it as HTML and Markdown."""

import datetime
from pathlib import Path

from quant_assets.atomic_files import write_text_atomically
from quant_assets.listings.store import ListingStore
from quant_assets.report.decision.content import DecisionReport, gather
from quant_assets.report.decision.figures import draw
from quant_assets.report.page import render_html_page, render_markdown_page
from quant_assets.settings import Settings
from quant_assets.warehouse.connection import Warehouse

_TEMPLATES = Path(__file__).parent / "templates"


def build_decision_report(
    settings: Settings, *, now: datetime.datetime | None = None
) -> DecisionReport:
    """Read the report from the published warehouse; raise `InputError` without marts."""
    listings = ListingStore(settings.listings).snapshot("raw_listings")
    read_at = None
    if listings.exists():
        read_at = datetime.datetime.fromtimestamp(listings.stat().st_mtime, datetime.UTC)
    with Warehouse(settings.warehouse).read() as connection:
        return gather(
            connection,
            now=now or datetime.datetime.now(datetime.UTC),
            listings_read_at=read_at,
        )


def write_decision_report(report: DecisionReport, path: Path) -> tuple[Path, Path]:
    """Write the report atomically as `path` with `.html` and with `.md`; return both paths."""
    html, markdown = path.with_suffix(".html"), path.with_suffix(".md")
    write_text_atomically(html, render_html(report))
    write_text_atomically(markdown, render_markdown(report))
    return html, markdown


def render_html(report: DecisionReport) -> str:
    """The report as a self-contained HTML page."""
    return render_html_page(_TEMPLATES, "decision.html.jinja", report=report, figures=draw(report))


def render_markdown(report: DecisionReport) -> str:
    """The report as Markdown; text from listings and records is escaped."""
    return render_markdown_page(_TEMPLATES, "decision.md.jinja", report=report)
