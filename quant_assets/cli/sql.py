"""`quant-assets sql`: a query on the warehouse, read-only."""

from typing import Annotated

import duckdb
import typer
from rich.table import Table

from quant_assets.cli.output import output_console
from quant_assets.errors import InputError
from quant_assets.settings import get_settings
from quant_assets.warehouse.connection import Warehouse


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
    output_console().print(table)
