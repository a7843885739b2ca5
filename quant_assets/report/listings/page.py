"""The insight report: which offers give the most memory or model slots for their price.

It is rendered as Markdown and as one self-contained HTML page.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from html import escape
from pathlib import Path

from pydantic import BaseModel

from quant_assets.atomic_files import write_text_atomically
from quant_assets.listings.enrichment import CAPACITY_COLUMN
from quant_assets.listings.pipeline import PipelineResult
from quant_assets.listings.prices.exchange_rates import ExchangeRates, load_exchange_rates
from quant_assets.listings.quarantine import QuarantineReason
from quant_assets.report.page import (
    figure_html,
    log_ticks,
    money,
    render_html_page,
    render_markdown_page,
)

_TEMPLATES = Path(__file__).parent / "templates"
_BEST_OFFERS = 15
_EXAMPLES = 2
_VENDOR_COLORS = {"NVIDIA": "#3a8f4d", "AMD": "#d1602f", "Intel": "#2f7fd1", "Apple": "#8a6fc9"}


class Offer(BaseModel):
    """The cheapest offer of a card."""

    canonical_name: str
    gpu_vendor: str
    seller: str | None
    url: str | None
    gpu_count: int
    vram_gb: float
    price_per_gpu_usd: float
    price_per_gb_usd: float
    slots_7b: int | None = None
    """7B models that fit on one GPU, at the first of the chosen bit widths."""
    price_per_slot_usd: float | None = None
    offers: int
    """Number of the card's offers with a price of this kind."""
    median_per_gpu_usd: float

    @property
    def link(self) -> str | None:
        """The offer's URL, if it is a web address."""
        is_web = self.url is not None and self.url.startswith(("https://", "http://"))
        return self.url if is_web else None


class QuarantineLine(BaseModel):
    """Number of rows quarantined for one reason, with example titles."""

    reason: str
    words: str
    rows: int
    examples: list[str]


class Section(BaseModel):
    """Offers of one kind: to buy, or to rent by the hour."""

    kind: str
    heading: str
    unit: str
    offers: list[Offer]


class ListingReport(BaseModel):
    """The content of the report."""

    written_at: datetime
    sources: list[str]
    counts: dict[str, int]
    match_rate: float | None
    cards: int
    slot_label: str | None
    """Meaning of a slot, such as "7B model at 4 bits"; None without the capacity columns."""
    overhead_note: str
    sections: list[Section]
    quarantine: list[QuarantineLine]
    unpriced: int
    rates_date: str
    rates_source: str


@dataclass(frozen=True)
class _SlotColumn:
    column: str
    label: str


def build_listing_report(
    result: PipelineResult, *, overhead_gb: float = 2.0, rates: ExchangeRates | None = None
) -> ListingReport:
    """Gather the report's content from one run, with slots if the run has capacity columns."""
    rates = rates or load_exchange_rates()
    workspace, rows = result.enriched.workspace, result.enriched.rows
    slot = _slot_column([name for name, *_ in workspace.query(f"DESCRIBE {rows}")])
    cards, unpriced = workspace.query(
        f"SELECT count(DISTINCT canonical_name), count(*) FILTER (price_usd IS NULL) FROM {rows}"  # noqa: S608, own names
    )[0]
    sources = workspace.query(
        f"SELECT DISTINCT source_file FROM {rows} UNION "  # noqa: S608, own names
        f"SELECT DISTINCT source_file FROM {result.normalized.quarantined} ORDER BY 1"
    )
    return ListingReport(
        written_at=datetime.now(UTC),
        sources=[name for (name,) in sources],
        counts=result.counts,
        match_rate=result.normalized.match_rate,
        cards=cards,
        slot_label=slot.label if slot else None,
        overhead_note=f"{overhead_gb:g} GB of each GPU kept for overhead",
        sections=[
            Section(kind=kind, heading=heading, unit=unit, offers=offers)
            for kind, heading, unit in (
                ("purchase", "To buy", "USD"),
                ("hourly", "To rent by the hour", "USD per hour"),
            )
            if (offers := _cheapest_offers(result, kind, slot))
        ],
        quarantine=_quarantine_lines(result),
        unpriced=unpriced,
        rates_date=rates.date.isoformat(),
        rates_source=rates.source,
    )


def write_listing_report(report: ListingReport, path: Path) -> tuple[Path, Path]:
    """Write the report as `path` with the suffixes `.html` and `.md`; return both paths."""
    html, markdown = path.with_suffix(".html"), path.with_suffix(".md")
    write_text_atomically(html, render_html(report))
    write_text_atomically(markdown, render_markdown(report))
    return html, markdown


def render_markdown(report: ListingReport) -> str:
    """The report as Markdown; sellers' texts are escaped."""
    return render_markdown_page(_TEMPLATES, "report.md.jinja", report=report)


def render_html(report: ListingReport) -> str:
    """The report as one HTML page with scripts and styles inlined."""
    figures = {section.kind: _figures(report, section) for section in report.sections}
    return render_html_page(_TEMPLATES, "report.html.jinja", report=report, figures=figures)


def _slot_column(columns: Sequence[str]) -> _SlotColumn | None:
    """The capacity column for 7B models at the first bit width, if any."""
    prefix = f"{CAPACITY_COLUMN}.7b"
    column = next((name for name in columns if name.startswith(prefix)), None)
    if column is None:
        return None
    bits = column.removeprefix(prefix).removeprefix("_").removesuffix("bit")
    return _SlotColumn(column, f"7B model at {bits or '4'} bits")


def _cheapest_offers(result: PipelineResult, kind: str, slot: _SlotColumn | None) -> list[Offer]:
    """The cheapest offer of every card, best value first."""
    slots = f'"{slot.column}"' if slot else "NULL"
    workspace = result.enriched.workspace
    rows = workspace.query(
        f"""
        WITH priced AS (
            SELECT *, CAST({slots} AS BIGINT) AS slots_7b
            FROM {result.enriched.rows} WHERE price_kind = ? AND price_per_gpu_usd IS NOT NULL
        ), ranked AS (
            SELECT *, row_number() OVER (
                       PARTITION BY canonical_name ORDER BY price_per_gpu_usd, position
                   ) AS place,
                   count(*) OVER (PARTITION BY canonical_name) AS offers,
                   median(price_per_gpu_usd) OVER (PARTITION BY canonical_name) AS middle
            FROM priced
        )
        SELECT canonical_name, gpu_vendor, seller, url, gpu_count, vram_gb, price_per_gpu_usd,
               price_per_gb_usd, slots_7b, price_per_gpu_usd / nullif(slots_7b, 0), offers, middle
        FROM ranked WHERE place = 1
        ORDER BY price_per_gpu_usd / nullif(slots_7b, 0) NULLS LAST, price_per_gb_usd, 1
        """,  # noqa: S608, own names
        [kind],
    )
    return [Offer(**dict(zip(Offer.model_fields, row, strict=True))) for row in rows]


def _quarantine_lines(result: PipelineResult) -> list[QuarantineLine]:
    rows = result.normalized.workspace.query(
        f"""
        SELECT reason, count(*), list(DISTINCT title ORDER BY title)[1:{_EXAMPLES}]
        FROM {result.normalized.quarantined} GROUP BY reason ORDER BY 2 DESC, 1
        """  # noqa: S608, own names
    )
    return [
        QuarantineLine(
            reason=reason,
            words=QuarantineReason(reason).words,
            rows=number,
            examples=[title for title in titles or () if title],
        )
        for reason, number, titles in rows
    ]


def _figures(report: ListingReport, section: Section) -> list[tuple[str, str]]:
    """Headings and HTML of a section's plots."""
    offers = [offer for offer in section.offers if not report.slot_label or offer.slots_7b]
    if not offers:
        return []
    best = offers[:_BEST_OFFERS]
    if report.slot_label:
        capacity_name = f"Slots: {report.slot_label}"
        capacities: list[float] = [offer.slots_7b or 0 for offer in offers]
        values = [offer.price_per_slot_usd or 0 for offer in best]
        value_name = f"{section.unit} per slot"
    else:
        capacity_name = "Memory of one GPU (GB)"
        capacities = [offer.vram_gb for offer in offers]
        values = [offer.price_per_gb_usd for offer in best]
        value_name = f"{section.unit} per GB"
    return [
        (
            "Price against capacity",
            _scatter(offers, capacities, capacity_name, f"{section.unit} per GPU"),
        ),
        ("Best offers", _bars(best, values, value_name)),
    ]


def _scatter(
    offers: Sequence[Offer], capacities: Sequence[float], x_title: str, y_title: str
) -> str:
    import plotly.graph_objects as go

    figure = go.Figure()
    frontier = _frontier(offers, capacities)
    # Labels alternate above and below their points and lean towards the middle of the plot.
    positions = {
        index: f"{('bottom', 'top')[place % 2]} "
        + ("left" if capacities[index] > max(capacities) / 3 else "right")
        for place, index in enumerate(frontier)
    }
    figure.add_scatter(
        x=[capacities[index] for index in frontier],
        y=[offers[index].price_per_gpu_usd for index in frontier],
        mode="lines",
        name="cheapest for its capacity",
        line={"dash": "dot", "width": 1.5, "color": "#888888", "shape": "hv"},
        hoverinfo="skip",
    )
    for vendor, color in _VENDOR_COLORS.items():
        indexes = [index for index, offer in enumerate(offers) if offer.gpu_vendor == vendor]
        if not indexes:
            continue
        figure.add_scatter(
            x=[capacities[index] for index in indexes],
            y=[offers[index].price_per_gpu_usd for index in indexes],
            mode="markers+text",
            name=vendor,
            marker={"size": 9, "color": color},
            text=[
                escape(_short(offers[index].canonical_name)) if index in frontier else ""
                for index in indexes
            ],
            textposition=[positions.get(index, "bottom right") for index in indexes],
            textfont={"size": 11},
            customdata=[escape(offers[index].canonical_name) for index in indexes],
            hovertemplate="%{customdata}<br>%{x:g}, $%{y:,.2f}<extra></extra>",
        )
    figure.update_xaxes(title=x_title, type="log", **log_ticks(capacities))
    prices = [offer.price_per_gpu_usd for offer in offers]
    figure.update_yaxes(title=y_title, type="log", **log_ticks(prices))
    return figure_html(figure, height=460)


def _frontier(offers: Sequence[Offer], capacities: Sequence[float]) -> list[int]:
    """The Pareto frontier of price and capacity, as indexes sorted by price."""
    by_price = sorted(
        range(len(offers)), key=lambda index: (offers[index].price_per_gpu_usd, -capacities[index])
    )
    best, frontier = 0.0, []
    for index in by_price:
        if capacities[index] > best:
            best = capacities[index]
            frontier.append(index)
    return frontier


def _bars(offers: Sequence[Offer], values: Sequence[float], x_title: str) -> str:
    import plotly.graph_objects as go

    figure = go.Figure(
        go.Bar(
            x=list(values),
            y=[escape(_short(offer.canonical_name)) for offer in offers],
            orientation="h",
            marker={"color": [_VENDOR_COLORS[offer.gpu_vendor] for offer in offers]},
            text=[f"${money(value)}" for value in values],
            textposition="auto",
            hovertemplate="%{y}<br>$%{x:,.3f}<extra></extra>",
        )
    )
    figure.update_xaxes(title=x_title, rangemode="tozero")
    figure.update_yaxes(autorange="reversed", ticksuffix=" ")
    return figure_html(figure, height=90 + 26 * len(offers))


def _short(name: str) -> str:
    """A card's name without redundant words."""
    return name.removeprefix("GeForce ").replace(" Blackwell", "")
