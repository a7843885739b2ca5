"""The plots of the decision report, as HTML for its page."""

from collections.abc import Callable, Sequence
from html import escape
from typing import TypeVar

from quant_assets.report.decision.content import (
    CardOffer,
    Cell,
    Conditions,
    DecisionReport,
    VariantFigures,
)
from quant_assets.report.page import figure_html, log_ticks

_COLORS = ("#2f7fd1", "#d1602f", "#3a8f4d", "#8a6fc9", "#c2487f", "#8c8420", "#3f9c9c", "#7d7d7d")

RowT = TypeVar("RowT", VariantFigures, Cell)

_LABEL_SIDES = ("top center", "bottom center", "middle right", "middle left")
_LABEL_WIDTH, _LABEL_HEIGHT = 0.12, 0.08
"""Space that a label takes, as a share of the plot."""


def draw(report: DecisionReport) -> dict[str, str]:
    """The plots by name; a plot without data is left out."""
    complete = [row for row in report.variants if row.quality_loss is not None]
    timed = _under_newest_conditions(
        [row for row in complete if row.decode_tokens_per_s is not None]
    )
    figures = {}
    if complete:
        newest = {(row.model, row.variant): row for row in sorted(complete, key=_age, reverse=True)}
        figures["size"] = _quality(
            list(newest.values()), lambda row: row.size_gb, "Size of the artifact (GB)"
        )
    if timed:
        figures["speed"] = _quality(
            timed, lambda row: row.decode_tokens_per_s or 0, "Decoding, batch 1 (tokens/s)"
        )
    for model in report.models:
        cells = _under_newest_conditions([cell for cell in report.cells if cell.model == model])
        if cells:
            figures[f"latency {model}"] = _latency(cells)
    for kind in ("purchase", "hourly"):
        offers = [
            offer
            for offer in report.card_offers
            if offer.price_kind == kind and offer.capacity_7b > 0
        ]
        if offers:
            figures[f"price {kind}"] = _price(offers, kind)
    return figures


def _age(row: Conditions) -> int:
    """The rank of its conditions, where a variant without any is not older than others."""
    return row.conditions_recency or 0


def _under_newest_conditions(rows: Sequence[RowT]) -> list[RowT]:
    """The rows of each model under the conditions measured last: only these can be compared."""
    newest: dict[str, int] = {}
    for row in rows:
        newest[row.model] = min(_age(row), newest.get(row.model, _age(row)))
    return [row for row in rows if _age(row) == newest[row.model]]


def _quality(
    rows: Sequence[VariantFigures], x: Callable[[VariantFigures], float], x_title: str
) -> str:
    import plotly.graph_objects as go

    sides = _label_sides([(x(row), row.quality_loss or 0) for row in rows])
    figure = go.Figure()
    for flag, name, color in (
        (True, "pareto", _COLORS[0]),
        (False, "dominated by another", _COLORS[7]),
        (None, "not fully measured", _COLORS[5]),
    ):
        placed = [
            (row, side) for row, side in zip(rows, sides, strict=True) if row.is_pareto is flag
        ]
        shown = [row for row, _ in placed]
        if not shown:
            continue
        figure.add_scatter(
            x=[x(row) for row in shown],
            y=[100 * (row.quality_loss or 0) for row in shown],
            error_y=_error_bars(shown),
            mode="markers+text",
            name=name,
            marker={"size": 10, "color": color},
            text=[escape(row.variant) for row in shown],
            textposition=[side for _, side in placed],
            textfont={"size": 11},
            customdata=[
                escape(f"{row.model} {row.variant}, on {row.measured_on}") for row in shown
            ],
            hovertemplate="%{customdata}<br>%{x:,.3g}, %{y:+.2f}%<extra></extra>",
        )
    figure.update_xaxes(title=x_title, rangemode="tozero")
    figure.update_yaxes(title="Quality loss (% perplexity)")
    return figure_html(figure, height=380)


def _error_bars(rows: Sequence[VariantFigures]) -> dict[str, object]:
    """The 95% intervals of the losses, in percent; none where a loss has none."""
    loss, low, high = (
        [getattr(row, name) for row in rows]
        for name in ("quality_loss", "quality_loss_low", "quality_loss_high")
    )
    return {
        "array": [
            0 if top is None else 100 * (top - at) for at, top in zip(loss, high, strict=True)
        ],
        "arrayminus": [
            0 if bottom is None else 100 * (at - bottom)
            for at, bottom in zip(loss, low, strict=True)
        ],
        "thickness": 1,
    }


def _label_sides(points: Sequence[tuple[float, float]]) -> list[str]:
    """The side of each point's label, chosen so that the labels of close points do not overlap."""
    width, height = (max(axis) - min(axis) or 1.0 for axis in zip((0.0, 0.0), *points, strict=True))
    sides: dict[int, str] = {}
    # Highest first, so that its label goes on top.
    for number in sorted(range(len(points)), key=lambda number: -points[number][1]):
        x, y = points[number]
        taken = {
            side
            for other, side in sides.items()
            if abs(x - points[other][0]) < _LABEL_WIDTH * width
            and abs(y - points[other][1]) < _LABEL_HEIGHT * height
        }
        sides[number] = next((side for side in _LABEL_SIDES if side not in taken), _LABEL_SIDES[0])
    return [sides[number] for number in range(len(points))]


def _latency(cells: Sequence[Cell]) -> str:
    """Median duration of a run by batch size, from the newest record of each cell.

    All cells have equal conditions.
    """
    import plotly.graph_objects as go

    figure = go.Figure()
    names = sorted({cell.variant for cell in cells})
    for position, name in enumerate(names):
        newest = {
            cell.batch_size: cell
            for cell in sorted(cells, key=lambda cell: cell.measured_at)
            if cell.variant == name
        }
        sizes = sorted(newest)
        figure.add_scatter(
            x=[str(size) for size in sizes],
            y=[newest[size].p50_ms for size in sizes],
            error_y={
                "array": [newest[size].p95_ms - newest[size].p50_ms for size in sizes],
                "arrayminus": [0] * len(sizes),
                "thickness": 1,
            },
            mode="lines+markers",
            name=escape(name),
            line={"color": _COLORS[position % len(_COLORS)]},
            hovertemplate="batch %{x}: %{y:,.0f} ms<extra>%{fullData.name}</extra>",
        )
    figure.update_xaxes(title="Batch size", type="category")
    figure.update_yaxes(title="Duration of a run, p50 up to p95 (ms)", rangemode="tozero")
    return figure_html(figure, height=400)


def _price(offers: Sequence[CardOffer], kind: str) -> str:
    import plotly.graph_objects as go

    capacities = [offer.capacity_7b for offer in offers]
    prices = [offer.price_per_gpu_usd for offer in offers]
    cheapest = [
        not any(
            other.capacity_7b >= offer.capacity_7b
            and other.price_per_gpu_usd < offer.price_per_gpu_usd
            for other in offers
        )
        for offer in offers
    ]
    figure = go.Figure(
        go.Scatter(
            x=capacities,
            y=prices,
            mode="markers+text",
            marker={"size": 9, "color": [_COLORS[0] if best else _COLORS[7] for best in cheapest]},
            text=[
                escape(offer.gpu.removeprefix("GeForce ")) if best else ""
                for offer, best in zip(offers, cheapest, strict=True)
            ],
            textposition=[
                "bottom left" if capacity > max(capacities) / 3 else "bottom right"
                for capacity in capacities
            ],
            textfont={"size": 11},
            customdata=[escape(offer.gpu) for offer in offers],
            hovertemplate="%{customdata}<br>%{x} models, $%{y:,.2f}<extra></extra>",
        )
    )
    unit = "USD per hour and GPU" if kind == "hourly" else "USD per GPU"
    figure.update_xaxes(
        title="4-bit 7B models that one GPU holds", type="log", **log_ticks(capacities)
    )
    figure.update_yaxes(title=unit, type="log", **log_ticks(prices))
    return figure_html(figure, height=420)
