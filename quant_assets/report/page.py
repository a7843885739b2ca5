"""Shared by the HTML and Markdown reports: template rendering, number formats, plot styling.

A page is a single file with its scripts and styles inlined; it follows the reader's light or dark
theme.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from quant_assets.escaping import markdown_text

_TEMPLATES = Path(__file__).parent / "templates"


def render_html_page(templates: Path, name: str, **content: Any) -> str:
    """Render a template that extends `page.html.jinja`, with plotly's script inlined; text is escaped."""
    from plotly.offline import get_plotlyjs

    template = _environment(templates, autoescape=True).get_template(name)
    return template.render(plotly_js=get_plotlyjs(), **content)


def render_markdown_page(templates: Path, name: str, **content: Any) -> str:
    """Render a Markdown template; its filter `text` escapes text from listings and records."""
    environment = _environment(templates, autoescape=False)
    environment.filters["text"] = lambda value: markdown_text(str(value or ""))
    return environment.get_template(name).render(**content)


def _environment(templates: Path, *, autoescape: bool) -> Environment:
    environment = Environment(
        loader=FileSystemLoader([templates, _TEMPLATES]),
        autoescape=autoescape,  # noqa: S701, Markdown has its own escaping
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["money"] = money
    environment.filters["number"] = number
    environment.filters["percent"] = percent
    return environment


def money(amount: float | None) -> str:
    """An amount in USD with as many digits as its size needs, or a dash."""
    if amount is None:
        return "–"
    if amount >= 100:
        return f"{amount:,.0f}"
    return f"{amount:,.2f}" if amount >= 1 else f"{amount:.3g}"


def number(value: float | None, digits: int = 0) -> str:
    """A number with thousands separators, or a dash."""
    return "–" if value is None else f"{value:,.{digits}f}"


def percent(share: float | None, digits: int = 1) -> str:
    """A share as a signed percentage, or a dash."""
    return "–" if share is None else f"{share:+.{digits}%}"


def log_ticks(values: Sequence[float]) -> dict[str, Any]:
    """Ticks of a logarithmic axis at 1, 2 and 5 of each decade in the range of `values`."""
    ticks = [
        digit * 10.0**exponent
        for exponent in range(-4, 7)
        for digit in (1, 2, 5)
        if min(values) / 2 <= digit * 10.0**exponent <= max(values) * 2
    ]
    texts = [f"{tick:,.0f}" if tick >= 1 else f"{tick:g}" for tick in ticks]
    return {"tickvals": ticks, "ticktext": texts}


def figure_html(figure: Any, height: int, *, top: int = 10) -> str:
    """A plotly figure as HTML for `page.html.jinja`, which has the script and sets the theme.

    `height` and the margin `top` are pixels.
    """
    for axes in (figure.update_xaxes, figure.update_yaxes):
        axes(automargin=True, title_standoff=12, ticks="")
    figure.update_layout(
        height=height,
        margin={"l": 10, "r": 10, "t": top, "b": 10},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        legend={"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0},
        font={"family": "system-ui, sans-serif", "size": 13},
        template="none",
    )
    html: str = figure.to_html(
        full_html=False,
        include_plotlyjs=False,
        config={"responsive": True, "displayModeBar": False},
    )
    return html
