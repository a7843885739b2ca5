"""No text runs as a formula, wherever a spreadsheet splits it; every text can be restored."""

import re

import duckdb
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quant_assets import spreadsheet_cells
from quant_assets.spreadsheet_cells import neutralized, neutralized_sql

SIGNS = "=+-@\uff1d\uff0b\uff0d\uff20\u2212"
BREAKS = "\t\n\x0b\x0c\r\x85\u2028"
UNSEEN = " \x00\x01\xa0\xad\u200b\u200d\u2060\u3000\ufeff"
texts = st.text(st.sampled_from(f"{SIGNS}{BREAKS}{UNSEEN};|,'a1."), max_size=9)


@pytest.mark.parametrize(
    ("text", "cell"),
    [
        ("=1+1", "'=1+1"),
        ("\n=1", "'\n'=1"),
        ("\x0bx", "'\x0bx"),
        ("\u200b=1", "'\u200b=1"),
        ("\ufeff@x", "'\ufeff@x"),
        ("\uff1d1+1", "'\uff1d1+1"),
        ("x;=1+1", "x;'=1+1"),
        ("x;\u200b =1+1;-2", "x;'\u200b =1+1;'-2"),
        ("'=1", "''=1"),
        ("L4 24GB; new", "L4 24GB; new"),
        ("L4'; DROP TABLE x; --", "L4'; DROP TABLE x; --"),
        ("https://x.example/?a=1&b=-2", "https://x.example/?a=1&b=-2"),
    ],
)
def test_formulas_get_an_apostrophe(text: str, cell: str) -> None:
    assert neutralized(text) == cell


@given(texts)
@settings(deadline=None)
def test_no_part_of_a_cell_is_a_formula(text: str) -> None:
    cell = neutralized(text)
    for separators in (";", "|", "\t", BREAKS, f";|{BREAKS}"):
        for part in re.split(f"[{separators}]", cell):
            seen = part.lstrip(UNSEEN + BREAKS)
            assert not (seen[:1] in tuple(SIGNS) and seen.strip(SIGNS + UNSEEN + BREAKS + "'"))


def restored(cell: str) -> str:
    """Undo the escaping as the module's docstring describes."""
    leading, inside = spreadsheet_cells._LEADING[1:], spreadsheet_cells._INSIDE
    cell = re.sub(rf"^'(?={leading})", "", cell)
    end = re.search(spreadsheet_cells._NOTHING_TO_RUN.replace(")'(", ")(") + r"\Z", cell)
    head, tail = (cell[: end.start()], cell[end.start() :]) if end else (cell, "")
    return re.sub(inside.replace(")(", ")'(", 1), r"\1\2", head) + tail


@given(st.lists(texts, min_size=20, max_size=60))
@settings(deadline=None, max_examples=20)
def test_texts_can_be_restored_and_sql_agrees(written: list[str]) -> None:
    cells = [neutralized(text) for text in written]
    assert [restored(cell) for cell in cells] == written
    query = f"SELECT list_transform(?::VARCHAR[], lambda cell: {neutralized_sql('cell')})"
    with duckdb.connect() as connection:
        assert connection.execute(query, [written]).fetchall() == [(cells,)]
