"""The insight report: its content, and the escaping of sellers' texts."""

import re
from collections.abc import Iterator
from html.parser import HTMLParser
from math import floor
from pathlib import Path

import pytest

from quant_assets.listings.pipeline import PipelineOptions, PipelineResult, run_pipeline
from quant_assets.report.listings.page import (
    build_listing_report,
    render_html,
    render_markdown,
    write_listing_report,
)
from quant_assets.report.page import money
from quant_assets.settings import get_settings

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
    assert best.slots == {"7b": 6, "13b": 3, "70b": 0}
    assert best.price_per_slot_usd("7b") == pytest.approx(400)
    assert best.price_per_slot_usd("13b") == pytest.approx(800)
    assert best.price_per_slot_usd("70b") is None
    assert best.price_per_gb_usd == pytest.approx(100)
    assert buy.offers[-1].slots["7b"] == 0 and buy.offers[-1].price_per_slot_usd("7b") is None
    assert [offer.canonical_name for offer in rent.offers] == ["A10"]
    assert report.unpriced == 1
    assert {line.reason: line.rows for line in report.quarantine} == {
        "accessory": 1,
        "no_gpu_named": 1,
    }


def test_slots_are_left_out_without_the_metric(tmp_path: Path) -> None:
    (tmp_path / "in.csv").write_text(ROWS)
    report = build_listing_report(run_pipeline([tmp_path / "in.csv"]))
    assert report.capacity is None
    assert "slot" not in render_markdown(report)
    assert "per slot" not in Page(render_html(report)).text


@pytest.mark.parametrize("bits", [(4,), (4, 8), (3, 8, 16)])
def test_every_size_at_every_bit_width_is_shown(tmp_path: Path, bits: tuple[int, ...]) -> None:
    (tmp_path / "in.csv").write_text(ROWS)
    options = PipelineOptions(quantize_metric=True, bits=bits)
    report = build_listing_report(run_pipeline([tmp_path / "in.csv"], options=options))
    markdown, html = render_markdown(report), render_html(report)
    shown = Page(html).text
    for width in bits:
        assert shown.count(f"Models per GPU at {width} bits") == len(report.sections)
        weights = {"7B": 3.5 * width / 4, "13B": 6.5 * width / 4, "70B": 35 * width / 4}
        counts = {size: floor((48 - 2) / weights_gb) for size, weights_gb in weights.items()}
        prices = [money(7800 / count) if count else "–" for count in counts.values()]
        cells = [str(cell) for cell in ("L40S", 48, *counts.values(), *prices)]
        assert f"| {' | '.join(cells)} |" in markdown
        assert "</td>".join(cells) in re.sub(r"<td[^>]*>", "", html)
        for size, count in counts.items():
            assert f"{size} at {width} bits {weights[size]:g} GB" in shown
            # The plot of the best offers has a panel for every model that a card has room for.
            assert (f'"{size} at {width} bits: USD per slot"' in html) == (count > 0)


@pytest.fixture
def own_heuristics(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The heuristics' configuration of a user, still to be written."""
    config = tmp_path / "heuristics.yaml"
    monkeypatch.setenv("QUANT_ASSETS_HEURISTICS_FILE", str(config))
    get_settings.cache_clear()
    yield config
    get_settings.cache_clear()


def test_the_sizes_and_the_overhead_of_the_configuration_are_used(
    own_heuristics: Path, tmp_path: Path
) -> None:
    own_heuristics.write_text(
        "quantization_capacity: {overhead_gb: 1.5, model_sizes_gb: {8b: 4.0, '<b>70b': 40.0}}\n"
    )
    (tmp_path / "in.csv").write_text("title,price\nL40S 48GB,$7800\n")
    result = run_pipeline([tmp_path / "in.csv"], options=PipelineOptions(quantize_metric=True))
    report = build_listing_report(result)
    assert report.sections[0].offers[0].slots == {"8b": 11, "<b>70b": 1}
    html = render_html(report)
    shown = Page(html).text
    assert "8B at 4 bits 4 GB, <B>70B at 4 bits 40 GB" in shown
    assert "1.5 GB are kept" in shown
    assert "<B>70B" not in html and "<B>70B" not in render_markdown(report)


def test_markdown_escapes_what_sellers_write(result: PipelineResult) -> None:
    markdown = render_markdown(build_listing_report(result))
    assert "| T400 2GB | 2 | 45.00 | 90.00 | 90.00 | 1 | tiny\\|shop |" in markdown
    assert "| T400 2GB | 2 | 0 | 0 | 0 | – | – | – |" in markdown
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
