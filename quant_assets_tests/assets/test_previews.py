"""Table previews show seller text literally, and never interpret it as Markdown or HTML."""

import duckdb
import pandas as pd
import pytest
from markdown_it import MarkdownIt

from quant_assets.assets.previews import preview_table, table_metadata

TITLES = [
    "[RTX 4090](javascript:alert(1))",
    "<img src=x onerror=alert(1)>",
    "![pixel](https://evil.example/x.png)",
    "A100 | 80 GB | `code` | **bold**",
    "L4\n\n# heading\n| a | b |",
    "\\[x](javascript:alert(1)) \\|",
    "x" * 58 + "|||||",
]


def cells_of(markdown: str) -> list[str]:
    """The table's cells as a Markdown viewer shows them; anything but text fails."""
    tokens = MarkdownIt("gfm-like", {"linkify": False}).parse(markdown)
    inline = [token for token in tokens if token.type == "inline"]
    assert {part.type for cell in inline for part in cell.children} <= {"text", "text_special"}
    return ["".join(part.content for part in cell.children) for cell in inline]


@pytest.mark.parametrize("title", TITLES)
def test_a_cell_shows_its_text_literally(title: str):
    one_line = " ".join(title.split())
    shown = one_line if len(one_line) <= 60 else one_line[:59] + "…"
    frame = pd.DataFrame({"a|b": [title], "price": [1299.5]})
    assert cells_of(preview_table(frame)) == ["a|b", "price", shown, "1300"]


def test_a_title_cannot_break_out_of_its_table():
    with duckdb.connect() as connection:
        connection.execute("create table t as select unnest($titles) as title", {"titles": TITLES})
        preview = table_metadata(connection, "t")["preview"].value
    assert len(cells_of(preview)) == 1 + len(TITLES)
