"""A success criterion of the specification, what was measured for it, and how it is shown."""

from collections.abc import Sequence
from typing import Final, Literal

from pydantic import BaseModel, ConfigDict
from rich.table import Table
from rich.text import Text

from quant_assets.escaping import markdown_text, terminal_text

CriterionId = Literal["SC-001", "SC-002", "SC-003", "SC-004", "SC-005", "SC-006"]

DEMANDS: Final[dict[CriterionId, str]] = {
    "SC-001": "a 7B model to GGUF in under 30 minutes with 16 GB of RAM and no GPU",
    "SC-002": "perplexity less than 5 % above the original's at standard levels such as Q4_K_M",
    "SC-003": "95 % of operations complete without a user's intervention",
    "SC-004": "the first quantization within 10 minutes of installation",
    "SC-005": "file sizes match expected compression ratios, such as Q4 about 4x smaller than FP16",
    "SC-006": "80 % of failures name their cause and a next step that resolves them",
}

Cell = str | int | float | bool | None
Row = dict[str, Cell]


class Criterion(BaseModel):
    """One success criterion and what was measured for it.

    `demand` is what the specification asks, `measured` the result in one sentence, `how` the method
    and its conditions. `met` is None when nothing was measured; `measured` says why then. `details`
    are the figures behind it, one row each, with units in the names of the columns; `notes` are
    sentences that belong to them.
    """

    model_config = ConfigDict(frozen=True)

    id: CriterionId
    demand: str
    measured: str
    how: str
    met: bool | None
    details: list[Row] = []
    notes: list[str] = []

    @property
    def verdict(self) -> str:
        """`met`, `not met` or `not measured`."""
        return {True: "met", False: "not met", None: "not measured"}[self.met]


def as_table(criteria: Sequence[Criterion]) -> Table:
    """The criteria as a table for a terminal."""
    table = Table(title="Success criteria", show_lines=True)
    for column in ("criterion", "demand", "measured", "how", ""):
        table.add_column(column, no_wrap=column == "criterion")
    for criterion in criteria:
        cells = (criterion.demand, criterion.measured, criterion.how)
        table.add_row(criterion.id, *map(_literal, cells), criterion.verdict)
    return table


def details_table(criterion: Criterion) -> Table:
    """The figures behind a criterion as a table for a terminal."""
    columns, lines = _details(criterion.details)
    table = Table(title=criterion.id, caption=_literal("\n".join(criterion.notes)))
    for column in columns:
        table.add_column(column, overflow="fold")
    for line in lines:
        table.add_row(*map(_literal, line))
    return table


def as_markdown(criteria: Sequence[Criterion], heading: str) -> str:
    """The criteria as a Markdown page: one table of all, then the figures behind each."""
    lines = [f"# {heading}", ""]
    lines += _markdown_table(
        ("criterion", "demand", "measured", "how", "result"),
        [(each.id, each.demand, each.measured, each.how, each.verdict) for each in criteria],
    )
    for criterion in criteria:
        if not criterion.details and not criterion.notes:
            continue
        lines += ["", f"## {criterion.id}", ""]
        if criterion.details:
            lines += [*_markdown_table(*_details(criterion.details)), ""]
        lines += [f"- {markdown_text(note)}" for note in criterion.notes]
    return "\n".join(lines).rstrip() + "\n"


def _details(rows: Sequence[Row]) -> tuple[tuple[str, ...], list[list[str]]]:
    """Columns and lines of a table of the rows; a single row stands upright, a line per figure."""
    if len(rows) == 1:
        return ("figure", "value"), [[name, _text(cell)] for name, cell in rows[0].items()]
    columns = tuple(dict.fromkeys(column for row in rows for column in row))
    return columns, [[_text(row.get(column)) for column in columns] for row in rows]


def _text(cell: Cell) -> str:
    if cell is None:
        return ""
    if isinstance(cell, bool):
        return "yes" if cell else "no"
    if isinstance(cell, float):
        return f"{cell:.4g}" if abs(cell) < 10_000 else f"{cell:,.0f}"
    return f"{cell:,}" if isinstance(cell, int) else cell


def _literal(text: str) -> Text:
    """Text of models and programs, without markup or control characters."""
    return Text(terminal_text(text))


def _markdown_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    def line(cells: Sequence[str]) -> str:
        return f"| {' | '.join(cells)} |"

    return [
        line([markdown_text(column) for column in columns]),
        line(["---"] * len(columns)),
        *(line([markdown_text(cell) for cell in row]) for row in rows),
    ]
