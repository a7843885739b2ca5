"""Metadata of table assets: row count, columns with their types, and the first rows."""

import dagster as dg
import duckdb
import pandas as pd

from quant_assets.escaping import markdown_text

PREVIEW_ROWS = 10
_CELL_CHARACTERS = 60


def table_metadata(
    connection: duckdb.DuckDBPyConnection, table: str
) -> dict[str, dg.MetadataValue]:
    """Row count, column types and a preview of `table` (`schema.name`, from code and never from data)."""
    described = connection.execute(f"describe {table}").fetchall()
    rows = connection.execute(f"select count(*) from {table}").fetchall()[0][0]  # noqa: S608
    preview = connection.execute(f"from {table} limit {PREVIEW_ROWS}").df()
    columns = [dg.TableColumn(name=name, type=kind) for name, kind, *_ in described]
    return {
        "dagster/row_count": dg.MetadataValue.int(int(rows)),
        "dagster/column_schema": dg.MetadataValue.table_schema(dg.TableSchema(columns=columns)),
        "dagster/table_name": dg.MetadataValue.text(table),
        "preview": dg.MetadataValue.md(preview_table(preview)),
    }


def preview_table(frame: pd.DataFrame) -> str:
    """A Markdown table of `frame`: long cells are cut; cells and column names appear literally."""

    def cell(value: object) -> str:
        text = f"{value:.4g}" if isinstance(value, float) else str(value)
        text = " ".join(text.split())
        return markdown_text(
            text if len(text) <= _CELL_CHARACTERS else text[: _CELL_CHARACTERS - 1] + "…"
        )

    header = [cell(column) for column in frame.columns]
    lines = [header, ["---"] * len(header)]
    lines += [[cell(value) for value in row] for row in frame.itertuples(index=False)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
