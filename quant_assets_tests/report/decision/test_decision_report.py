"""The decision report: its content, that it is self-contained, and that all text is escaped."""

import datetime
import json
import re
import shutil
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path

import duckdb
import pytest
from markdown_it import MarkdownIt
from pydantic import BaseModel

from quant_assets.errors import InputError
from quant_assets.report.decision.build import (
    build_decision_report,
    render_html,
    render_markdown,
    write_decision_report,
)
from quant_assets.report.decision.content import DecisionReport, QuarantinedCount
from quant_assets.report.decision.figures import draw
from quant_assets.settings import Settings
from quant_assets.warehouse.connection import Warehouse
from quant_assets_tests.marts_world import NOW


@pytest.fixture(scope="module")
def report(marts_home: Path) -> DecisionReport:
    return build_decision_report(Settings(home=marts_home), now=NOW + datetime.timedelta(days=1))


def test_it_has_the_figures_of_the_marts(report: DecisionReport):
    assert report.models == ["m"]
    assert (report.offers, report.cards) == (5, 3)
    assert {(row.variant, row.is_pareto) for row in report.variants} == {
        ("f16", True),
        ("q8", True),
        ("q4", None),
    }
    assert {(offer.gpu, offer.price_kind) for offer in report.card_offers} == {
        ("A", "purchase"),
        ("B", "hourly"),
        ("C", "purchase"),
    }
    assert {row.batch_size for row in report.recommendations} == {1, 4}


def test_it_lists_what_is_stale(marts_home: Path, report: DecisionReport):
    assert "The listings have never been read." in report.stale
    assert "m q4: its quality has not been measured." in report.stale
    assert "m q8: its speed was measured while other processes were busy." in report.stale
    assert not any("ago" in line for line in report.stale)
    later = build_decision_report(Settings(home=marts_home), now=NOW + datetime.timedelta(days=20))
    assert "m f16: it was measured 19 days ago." in later.stale


def test_the_page_is_self_contained(report: DecisionReport):
    html = render_html(report)
    outside_script = re.sub(r"<script.*?</script>", "", html, flags=re.DOTALL)
    assert not re.search(r"""(?:src|href)=["']?https?:""", outside_script)
    assert "<link" not in outside_script
    assert 'name="viewport"' in html and "prefers-color-scheme: dark" in html
    assert html.count('class="plotly-graph-div"') == 5  # size, speed, latency, buy, rent


def test_labels_of_close_points_do_not_overlap(report: DecisionReport):
    places = {"lower": (1.0, 0.010), "upper": (1.0, 0.012), "far": (4.0, 0.3)}
    variants = [
        report.variants[0].model_copy(
            update={"variant": name, "size_gb": size, "quality_loss": loss, "is_pareto": True}
        )
        for name, (size, loss) in places.items()
    ]
    plot = draw(report.model_copy(update={"variants": variants}))["size"]
    labels, sides = (
        json.loads(re.findall(rf'"{key}":(\[".*?"\])', plot)[0]) for key in ("text", "textposition")
    )
    assert dict(zip(labels, sides, strict=True)) == {
        "lower": "bottom center",
        "upper": "top center",
        "far": "top center",
    }


def test_html_and_markdown_have_every_recommendation(report: DecisionReport, tmp_path: Path):
    html, markdown = write_decision_report(report, tmp_path / "decision.html")
    assert (html.suffix, markdown.suffix) == (".html", ".md")
    for text in (html.read_text(), markdown.read_text()):
        for row in report.recommendations:
            assert row.variant in text and f"{row.decode_tokens_per_s:,.0f}" in text
        assert "estimated" in text and "measured" in text


def test_text_from_sellers_is_escaped(report: DecisionReport):
    option = report.recommendations[0].model_copy(update={"seller": "<b>|x|</b>"})
    hostile = report.model_copy(update={"recommendations": [option]})
    assert "<b>" not in render_html(hostile).split("</script>", 1)[1]
    assert r"\<b\>\|x\|" in render_markdown(hostile)


HOSTILE = (
    "</script><script>alert(1)</script>[x](javascript:alert(1))<img src=x onerror=alert(1)>|`\n"
)


def test_no_text_from_the_marts_becomes_markup(report: DecisionReport):
    """With every string of the report replaced, the page keeps its elements and tables."""

    def poisoned(row: BaseModel) -> BaseModel:
        fixed = {"price_kind", "quality_basis"}
        texts = {
            name: HOSTILE for name, value in row if isinstance(value, str) and name not in fixed
        }
        return row.model_copy(update=texts)

    lists = ("variants", "cells", "card_offers", "recommendations")
    hostile = report.model_copy(
        update={name: [poisoned(row) for row in getattr(report, name)] for name in lists}
        | {
            "models": [HOSTILE],
            "stale": [HOSTILE],
            "quarantine": [QuarantinedCount(reason=HOSTILE, rows=1, examples=[HOSTILE])],
        }
    )
    elements = Elements()
    elements.feed(render_html(hostile))
    assert elements.seen["script"] == 2 + 5, "the page's own two and one per plot"
    assert elements.seen["img"] == 0
    assert elements.handlers == []
    markdown = MarkdownIt("gfm-like", {"linkify": False}).parse(render_markdown(hostile))
    parts = {part.type for token in markdown for part in token.children or ()}
    assert parts <= {"text", "text_special", "softbreak"}
    rows = [token.type for token in markdown].count("tr_open")
    headings = 4
    assert rows == headings + sum(len(getattr(report, name)) for name in lists)


class Elements(HTMLParser):
    """Counts the elements of a page and collects their event handlers and script links."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: Counter[str] = Counter()
        self.handlers: list[str] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.seen[tag] += 1
        self.handlers += [
            value or ""
            for name, value in attributes
            if name.startswith("on") or (value or "").lower().startswith("javascript:")
        ]


def test_without_marts_it_names_the_next_step(tmp_path: Path):
    settings = Settings(home=tmp_path)
    with Warehouse(settings.warehouse).write():
        pass
    with pytest.raises(InputError, match="marts have not been built"):
        build_decision_report(settings)


def test_an_empty_installation_has_a_report(marts_home: Path, tmp_path: Path):
    settings = Settings(home=tmp_path)
    settings.warehouse.parent.mkdir(parents=True)
    shutil.copyfile(marts_home / "warehouse" / "quant_assets.duckdb", settings.warehouse)
    with duckdb.connect(str(settings.warehouse)) as connection:
        tables = connection.execute(
            "select table_name from information_schema.tables where table_schema = 'marts'"
        ).fetchall()
        for (table,) in tables:
            connection.execute(f"delete from marts.{table}").fetchall()
    report = build_decision_report(settings)
    assert "No offer can serve" in render_html(report)
    assert "No offer can serve" in render_markdown(report)


def test_figures_compare_only_what_was_measured_under_equal_conditions(report: DecisionReport):
    """Each row names its conditions; plots of speed show those measured last."""
    (row,) = (row for row in report.variants if row.variant == "q8")
    (cell,) = (cell for cell in report.cells if cell.variant == "q8")
    older = {"processor": "an older machine", "conditions_recency": 7}
    variants = [
        row.model_copy(update={"variant": "here", "conditions_recency": 1}),
        row.model_copy(update={"variant": "here", **older}),
        row.model_copy(update={"variant": "elsewhere", **older}),
    ]
    cells = [
        cell.model_copy(update={"variant": "here", "conditions_recency": 1}),
        cell.model_copy(update={"variant": "elsewhere", **older}),
    ]
    several = report.model_copy(update={"variants": variants, "cells": cells})
    figures = draw(several)
    assert "here" in figures["speed"] and "elsewhere" not in figures["speed"]
    assert "here" in figures["latency m"] and "elsewhere" not in figures["latency m"]
    # Size and quality do not depend on the machine: every variant once.
    assert figures["size"].count("m here, on") == figures["size"].count("m elsewhere, on") == 1
    assert "<dt>Variants</dt><dd>2</dd>" in render_html(several)
    assert ", 2 variants," in render_markdown(several)
    assert all(
        "an older machine" in text for text in (render_html(several), render_markdown(several))
    )
