"""`quant-assets sql`: a query on the warehouse, read-only."""

from typing import Annotated

import duckdb
import typer
from rich.console import Console
from rich.table import Table

from quant_assets.errors import InputError
from quant_assets.settings import get_settings
from quant_assets.warehouse.connection import Warehouse

PIPED_WIDTH = 10_000  # columns; a pipe has no width of its own, and no row should be cut


def sql(query: Annotated[str, typer.Argument(help="A DuckDB query.")]) -> None:
    """Run QUERY on the published DuckDB file and print the rows; nothing can be changed."""
    with Warehouse(get_settings().warehouse).read() as connection:
        try:
            answer = connection.execute(query)
            columns = [str(column[0]) for column in answer.description or []]
            rows = answer.fetchall()
        except duckdb.Error as error:
            raise InputError(
                "The query failed.",
                str(error),
                "Correct it; `quant-assets sql 'show all tables'` lists tables and columns.",
            ) from error
    table = Table(*columns)
    for row in rows:
        table.add_row(*("" if value is None else str(value) for value in row))
    console = Console(highlight=False, markup=False)
    if not console.is_terminal:
        console.width = PIPED_WIDTH
    console.print(table)
