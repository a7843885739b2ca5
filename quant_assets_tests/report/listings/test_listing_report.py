"""The insight report: its content, and the escaping of sellers' texts."""

from html.parser import HTMLParser
from pathlib import Path

import pytest

from quant_assets.listings.pipeline import PipelineOptions, PipelineResult, run_pipeline
from quant_assets.report.listings.page import (
    build_listing_report,
    render_html,
    render_markdown,
    write_listing_report,
)

ROWS = """title,seller,price,url
L4 24GB,shop,$2400,https://shop.example/l4
L4 24GB,other,$2600,javascript:alert(1)
L40S 48GB,<script>alert(2)</script>,$7800,https://shop.example/l40s
T400 2GB,tiny|shop,$90,
A10 24GB,cloud,$0.75/h,
heat sink for A100,shop,$20,
no card [here](http://x.example) | at all,shop,$20,
Tesla T4 16GB,shop,,
"""


class Page(HTMLParser):
    """Tags, links and the text outside scripts and styles."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.sources: list[str] = []
        self.text = ""
        self._hidden = False
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._hidden = tag in ("script", "style")
        values = dict(attrs)
        self.links += [values["href"] or ""] if "href" in values else []
        self.sources += [values["src"] or ""] if "src" in values else []

    def handle_endtag(self, tag: str) -> None:
        self._hidden = self._hidden and tag not in ("script", "style")

    def handle_data(self, data: str) -> None:
        if not self._hidden:
            self.text += data


@pytest.fixture
def result(tmp_path: Path) -> PipelineResult:
    (tmp_path / "in.csv").write_text(ROWS)
    return run_pipeline([tmp_path / "in.csv"], options=PipelineOptions(quantize_metric=True))


def test_best_offer_of_each_card_by_price_per_slot(result: PipelineResult) -> None:
    report = build_listing_report(result)
    buy, rent = report.sections
    assert [offer.canonical_name for offer in buy.offers] == ["L4", "L40S", "T400 2GB"]
    best = buy.offers[0]
    assert (best.seller, best.offers, best.median_per_gpu_usd) == ("shop", 2, 2500)
    assert best.slots_7b == 6
    assert best.price_per_slot_usd == pytest.approx(400)
    assert best.price_per_gb_usd == pytest.approx(100)
    assert buy.offers[-1].slots_7b == 0 and buy.offers[-1].price_per_slot_usd is None
    assert [offer.canonical_name for offer in rent.offers] == ["A10"]
    assert report.unpriced == 1
    assert {line.reason: line.rows for line in report.quarantine} == {
        "accessory": 1,
        "no_gpu_named": 1,
    }


def test_slots_are_left_out_without_the_metric(tmp_path: Path) -> None:
    (tmp_path / "in.csv").write_text(ROWS)
    report = build_listing_report(run_pipeline([tmp_path / "in.csv"]))
    assert report.slot_label is None
    assert "slot" not in render_markdown(report)
    assert "per slot" not in Page(render_html(report)).text


def test_markdown_escapes_what_sellers_write(result: PipelineResult) -> None:
    markdown = render_markdown(build_listing_report(result))
    assert "| T400 2GB | 2 | 0 | – | 45.00 | 90.00 | 90.00 | 1 | tiny\\|shop |" in markdown
    assert "<script>" not in markdown
    assert "[here](" not in markdown


def test_html_is_self_contained_and_runs_no_script_of_a_seller(result: PipelineResult) -> None:
    html = render_html(build_listing_report(result))
    page = Page(html)
    assert page.sources == []
    assert page.links == ["https://shop.example/l4", "https://shop.example/l40s"]
    assert "<script>alert(2)</script>" not in html
    assert "<script>alert(2)</script>" in page.text
    assert html.count('class="plotly-graph-div"') == 4
    assert "prefers-color-scheme: dark" in html and "width=device-width" in html


def test_both_formats_are_written_side_by_side(result: PipelineResult, tmp_path: Path) -> None:
    html, markdown = write_listing_report(
        build_listing_report(result), tmp_path / "made" / "r.html"
    )
    assert (html.name, markdown.name) == ("r.html", "r.md")
    assert html.read_text().startswith("<!DOCTYPE html>")
    assert markdown.read_text().startswith("# GPU offers")


def test_a_report_without_any_priced_offer(tmp_path: Path) -> None:
    (tmp_path / "in.csv").write_text("title\nL4\n")
    report = build_listing_report(run_pipeline([tmp_path / "in.csv"]))
    assert report.sections == []
    assert "No rows are quarantined." in Page(render_html(report)).text
