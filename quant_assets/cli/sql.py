"""`quant-assets sql`: query the warehouse, read-only."""

from typing import Annotated

import typer
from pydantic import BaseModel
from rich.cells import cell_len
from rich.table import Table

from quant_assets.cli.output import LiteralConsole, output_console, print_line
from quant_assets.cli.presentation import Reply
from quant_assets.cli.verbosity import notify
from quant_assets.escaping import terminal_line
from quant_assets.settings import get_settings
from quant_assets.warehouse.connection import Warehouse
from quant_assets.warehouse.read_query import QueryAnswer, run_query

_NULL = "NULL"
_CELL_FRAME = 3  # a cell's two spaces and its border


class SqlDocument(BaseModel):
    """The rows of a query, each a list in the order of `columns`; null for NULL.

    Values are DuckDB's exact text, whatever their type: JSON readers round large numbers. `types`
    are the columns' types in DuckDB, empty for EXPLAIN. `is_cut`: further rows are missing.
    """

    columns: list[str]
    types: list[str]
    rows: list[list[str | None]]
    is_cut: bool


def sql(
    query: Annotated[str, typer.Argument(help="A DuckDB query.")],
) -> Reply[SqlDocument]:
    """Run QUERY on the published DuckDB file, read-only, and print the rows.

    NULL is a missing value; the text NULL is shown in quotes. Line feeds and control characters are
    shown as \\n and \\x1b. On a terminal, rows that are too wide are shown one column per line.
    """
    with Warehouse(get_settings().warehouse).read() as connection:
        answer = run_query(connection, query)
    document = SqlDocument(
        columns=answer.columns,
        types=list(answer.types),
        rows=[list(row) for row in answer.rows],
        is_cut=answer.is_cut,
    )
    return Reply(document, lambda _: _show(answer))


def _show(answer: QueryAnswer) -> None:
    if answer.is_plan:
        for row in answer.rows:
            print_line("\n".join(text or "" for text in row))
    else:
        _print(answer, output_console())
    if answer.is_cut:
        notify(f"Only the first {len(answer.rows):,} rows are shown.")


def _print(answer: QueryAnswer, console: LiteralConsole) -> None:
    columns = [terminal_line(name) for name in answer.columns]
    rows = [[_shown(value) for value in row] for row in answer.rows]
    width = 1 + sum(
        max(map(cell_len, cells)) + _CELL_FRAME for cells in zip(columns, *rows, strict=True)
    )
    if console.is_terminal and width > console.width:
        _print_column_by_column(columns, rows, console)
        return
    console.width = max(console.width, width)
    table = Table(*columns)
    for row in rows:
        table.add_row(*row)
    console.print(table)


def _print_column_by_column(
    columns: list[str], rows: list[list[str]], console: LiteralConsole
) -> None:
    longest = max(map(cell_len, columns))
    for number, row in enumerate(rows, 1):
        console.print(f"row {number}", style="bold")
        for name, value in zip(columns, row, strict=True):
            console.print(f"{name:<{longest}}  {value}", soft_wrap=True)


def _shown(value: str | None) -> str:
    if value is None:
        return _NULL
    return f"'{value}'" if value == _NULL else terminal_line(value)
