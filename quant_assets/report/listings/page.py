"""The insight report: which offers give the most memory or model slots for their price.

It is rendered as Markdown and as one self-contained HTML page.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from html import escape
from math import inf
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from quant_assets.atomic_files import write_text_atomically
from quant_assets.capacity.heuristics.quantization_capacity import ModelSlot
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
_BEST_PER_SLOT = 8
_BAR_PX = 26
_PANEL_GAP_PX = 60
_TITLE_PX = 24
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
    slots: dict[str, int | None]
    """Number of models that fit on one GPU, by the key of their `ModelSlot`."""
    offers: int
    """Number of the card's offers with a price of this kind."""
    median_per_gpu_usd: float

    @property
    def link(self) -> str | None:
        """The offer's URL, if it is a web address."""
        is_web = self.url is not None and self.url.startswith(("https://", "http://"))
        return self.url if is_web else None

    def price_per_slot_usd(self, key: str) -> float | None:
        """Price of room for one model in USD; None where none fits."""
        slots = self.slots.get(key)
        return self.price_per_gpu_usd / slots if slots else None


class CapacityBasis(BaseModel):
    """What the numbers of slots are computed from."""

    overhead_gb: float
    slots: list[ModelSlot]

    @property
    def widths(self) -> dict[int, list[ModelSlot]]:
        """The slots of each bit width."""
        return {
            bits: [slot for slot in self.slots if slot.bits == bits]
            for bits in dict.fromkeys(slot.bits for slot in self.slots)
        }

    def needed_gb(self, slot: ModelSlot) -> float:
        """Memory of the smallest GPU with room for one model, in GB."""
        return self.overhead_gb + slot.weights_gb

    @property
    def note(self) -> str:
        """The rule and its figures in words."""
        weights = ", ".join(f"{slot.label} {slot.weights_gb:g} GB" for slot in self.slots)
        return (
            "A slot is room for the weights of one model on one GPU, of whose memory "
            f"{self.overhead_gb:g} GB are kept for the system, the kernels and the runtime. "
            f"Weights: {weights}. Context is not counted, and the GPUs of one board do not share "
            "a model. The price per slot is the price of one GPU over its slots."
        )


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
    capacity: CapacityBasis | None
    """None without the capacity columns."""
    sections: list[Section]
    quarantine: list[QuarantineLine]
    unpriced: int
    rates_date: str
    rates_source: str


def build_listing_report(
    result: PipelineResult, *, rates: ExchangeRates | None = None
) -> ListingReport:
    """Gather the report's content from one run, with slots if the run has capacity columns."""
    capacity = result.capacity
    rates = rates or load_exchange_rates()
    workspace, rows = result.enriched.workspace, result.enriched.rows
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
        capacity=None
        if capacity is None
        else CapacityBasis(overhead_gb=capacity.overhead_gb, slots=list(capacity.slots)),
        sections=[
            Section(kind=kind, heading=heading, unit=unit, offers=offers)
            for kind, heading, unit in (
                ("purchase", "To buy", "USD"),
                ("hourly", "To rent by the hour", "USD per hour"),
            )
            if (offers := _cheapest_offers(result, kind))
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


def _cheapest_offers(result: PipelineResult, kind: str) -> list[Offer]:
    """The cheapest offer of every card, best value for the first slot first, then per GB."""
    slots = f'"{CAPACITY_COLUMN}"' if result.capacity else "NULL"
    rows = result.enriched.workspace.query(
        f"""
        WITH ranked AS (
            SELECT *, row_number() OVER (
                       PARTITION BY canonical_name ORDER BY price_per_gpu_usd, position
                   ) AS place,
                   count(*) OVER (PARTITION BY canonical_name) AS offers,
                   median(price_per_gpu_usd) OVER (PARTITION BY canonical_name) AS middle
            FROM {result.enriched.rows} WHERE price_kind = ? AND price_per_gpu_usd IS NOT NULL
        )
        SELECT canonical_name, gpu_vendor, seller, url, gpu_count, vram_gb, price_per_gpu_usd,
               price_per_gb_usd, coalesce({slots}, '{{}}'), offers, middle
        FROM ranked WHERE place = 1
        ORDER BY price_per_gb_usd, 1
        """,  # noqa: S608, own names
        [kind],
    )
    offers = [
        Offer(**{**dict(zip(Offer.model_fields, row, strict=True)), "slots": json.loads(row[8])})
        for row in rows
    ]
    if result.capacity is None:
        return offers
    first = result.capacity.slots[0].key
    return sorted(offers, key=lambda offer: offer.price_per_slot_usd(first) or inf)


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
    slots = report.capacity.slots if report.capacity else []
    best = sorted(section.offers, key=lambda offer: offer.price_per_gb_usd)[:_BEST_OFFERS]
    rankings = [_best_for(section, slot) for slot in slots] or [
        _Ranking(f"{section.unit} per GB", best, [offer.price_per_gb_usd for offer in best])
    ]
    rankings = [ranking for ranking in rankings if ranking.offers]
    plots = [
        ("Price against memory", _scatter(section.offers, report.capacity, section.unit)),
        ("Best offers", _bars(rankings) if rankings else ""),
    ]
    return [(heading, plot) for heading, plot in plots if plot]


@dataclass(frozen=True)
class _Ranking:
    """Offers, best first, with the value that ranks them."""

    title: str
    offers: Sequence[Offer]
    values: Sequence[float]


def _best_for(section: Section, slot: ModelSlot) -> _Ranking:
    """The cheapest offers per slot; empty if no card has room for one."""
    priced = [
        (price, offer)
        for offer in section.offers
        if (price := offer.price_per_slot_usd(slot.key)) is not None
    ]
    best = sorted(priced, key=lambda item: item[0])[:_BEST_PER_SLOT]
    return _Ranking(
        f"{slot.label}: {section.unit} per slot",
        [offer for _, offer in best],
        [price for price, _ in best],
    )


def _scatter(offers: Sequence[Offer], capacity: CapacityBasis | None, unit: str) -> str:
    """Price and memory of each card; lines mark the memory from which a model fits."""
    import plotly.graph_objects as go

    figure = go.Figure()
    memory = [offer.vram_gb for offer in offers]
    prices = [offer.price_per_gpu_usd for offer in offers]
    if capacity is not None:
        _add_thresholds(figure, capacity, memory, prices)
    frontier = _frontier(offers)
    # Labels alternate above and below their points and lean towards the middle of the plot.
    positions = {
        index: f"{('bottom', 'top')[place % 2]} "
        + ("left" if memory[index] > max(memory) / 3 else "right")
        for place, index in enumerate(frontier)
    }
    figure.add_scatter(
        x=[memory[index] for index in frontier],
        y=[prices[index] for index in frontier],
        mode="lines",
        name="cheapest for its memory",
        line={"dash": "dot", "width": 1.5, "color": "#888888", "shape": "hv"},
        hoverinfo="skip",
    )
    for vendor, color in _VENDOR_COLORS.items():
        indexes = [index for index, offer in enumerate(offers) if offer.gpu_vendor == vendor]
        if not indexes:
            continue
        figure.add_scatter(
            x=[memory[index] for index in indexes],
            y=[prices[index] for index in indexes],
            mode="markers+text",
            name=vendor,
            marker={"size": 9, "color": color},
            text=[
                escape(_short(offers[index].canonical_name)) if index in frontier else ""
                for index in indexes
            ],
            textposition=[positions.get(index, "bottom right") for index in indexes],
            textfont={"size": 11},
            customdata=[escape(_hover_text(offers[index], capacity)) for index in indexes],
            hovertemplate="%{customdata}<br>%{x:g} GB, $%{y:,.2f}<extra></extra>",
        )
    figure.update_xaxes(title="Memory of one GPU (GB)", type="log", **log_ticks(memory))
    figure.update_yaxes(title=f"{unit} per GPU", type="log", **log_ticks(prices))
    return figure_html(figure, height=460)


def _add_thresholds(
    figure: Any, capacity: CapacityBasis, memory: Sequence[float], prices: Sequence[float]
) -> None:
    """A vertical line per slot at the memory from which one model fits."""
    smallest, largest = min(prices) / 1.5, max(prices) * 1.5
    for place, slot in enumerate(capacity.slots):
        needed = capacity.needed_gb(slot)
        if needed > max(memory):
            continue
        # Names of lines that lie close to each other take turns on three heights.
        top = largest * (largest / smallest) ** (0.07 * (2 - place % 3))
        figure.add_scatter(
            x=[needed, needed],
            y=[smallest, top],
            mode="lines+text",
            line={"width": 1, "color": "#888888"},
            text=["", escape(slot.label)],
            textposition="middle right",
            textfont={"size": 11},
            showlegend=False,
            hoverinfo="skip",
        )


def _hover_text(offer: Offer, capacity: CapacityBasis | None) -> str:
    """A card's name and what fits on it."""
    slots = capacity.slots if capacity else []
    fits = ", ".join(f"{offer.slots.get(slot.key) or 0} x {slot.label}" for slot in slots)
    return f"{offer.canonical_name}: {fits}" if fits else offer.canonical_name


def _frontier(offers: Sequence[Offer]) -> list[int]:
    """The Pareto frontier of price and memory, as indexes sorted by price."""
    by_price = sorted(
        range(len(offers)),
        key=lambda index: (offers[index].price_per_gpu_usd, -offers[index].vram_gb),
    )
    best, frontier = 0.0, []
    for index in by_price:
        if offers[index].vram_gb > best:
            best = offers[index].vram_gb
            frontier.append(index)
    return frontier


def _bars(rankings: Sequence[_Ranking]) -> str:
    """One panel of horizontal bars per ranking, below each other."""
    from plotly.subplots import make_subplots

    heights = [_BAR_PX * len(ranking.offers) for ranking in rankings]
    height = sum(heights) + _PANEL_GAP_PX * len(rankings) + _TITLE_PX
    figure = make_subplots(
        rows=len(rankings),
        cols=1,
        subplot_titles=[escape(ranking.title) for ranking in rankings],
        row_heights=heights,
        vertical_spacing=_PANEL_GAP_PX / height,
    )
    for row, ranking in enumerate(rankings, start=1):
        figure.add_bar(
            x=list(ranking.values),
            y=[escape(_short(offer.canonical_name)) for offer in ranking.offers],
            orientation="h",
            marker={"color": [_VENDOR_COLORS[offer.gpu_vendor] for offer in ranking.offers]},
            text=[f"${money(value)}" for value in ranking.values],
            textposition="auto",
            hovertemplate="%{y}<br>$%{x:,.3f}<extra></extra>",
            showlegend=False,
            row=row,
            col=1,
        )
    figure.update_xaxes(rangemode="tozero")
    figure.update_yaxes(autorange="reversed", ticksuffix=" ")
    figure.update_annotations(font_size=13)
    return figure_html(figure, height=height, top=_TITLE_PX)


def _short(name: str) -> str:
    """A card's name without redundant words."""
    return name.removeprefix("GeForce ").replace(" Blackwell", "")
