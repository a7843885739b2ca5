"""The whole-project report: what was measured, what it says about offers, and what is stale."""

import datetime
from pathlib import Path

import duckdb

from quant_assets.atomic_files import write_text_atomically
from quant_assets.errors import InputError
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
    """Gather the report from the published warehouse; raise `InputError` without marts."""
    listings = ListingStore(settings.listings).snapshot("raw_listings")
    read_at = None
    if listings.exists():
        read_at = datetime.datetime.fromtimestamp(listings.stat().st_mtime, datetime.UTC)
    with Warehouse(settings.warehouse).read() as connection:
        try:
            return gather(
                connection,
                now=now or datetime.datetime.now(datetime.UTC),
                listings_read_at=read_at,
            )
        except duckdb.CatalogException as error:
            raise InputError(
                "The marts have not been built yet.",
                str(error).splitlines()[0],
                "Run `make demo`, or materialize the assets in the Dagster UI.",
            ) from error


def write_decision_report(report: DecisionReport, path: Path) -> tuple[Path, Path]:
    """Write the report as `path` with `.html` and with `.md`, each whole; return both paths."""
    html, markdown = path.with_suffix(".html"), path.with_suffix(".md")
    write_text_atomically(html, render_html(report))
    write_text_atomically(markdown, render_markdown(report))
    return html, markdown


def render_html(report: DecisionReport) -> str:
    """The report as one HTML page that needs nothing but itself."""
    return render_html_page(_TEMPLATES, "decision.html.jinja", report=report, figures=draw(report))


def render_markdown(report: DecisionReport) -> str:
    """The report as Markdown; texts that others wrote are escaped."""
    return render_markdown_page(_TEMPLATES, "decision.md.jinja", report=report)
