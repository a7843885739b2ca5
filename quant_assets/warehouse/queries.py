"""Small queries of the commands and assets: the cheapest deployment options, row counts."""

import duckdb
from pydantic import BaseModel, ConfigDict


class DeploymentOption(BaseModel):
    """The cheapest offer, to rent or to buy, for a variant; `usd_per_slot` is per copy."""

    model_config = ConfigDict(frozen=True)

    price_kind: str
    model: str
    variant: str
    gpu: str
    gpu_count: int
    seller: str | None
    price_usd: float
    copies: int
    usd_per_slot: float


def cheapest_deployment_options(
    connection: duckdb.DuckDBPyConnection, limit: int
) -> list[DeploymentOption]:
    """The cheapest offer to rent and to buy for every variant, cheapest slots first."""
    rows = connection.execute(
        """
        select price_kind, model, variant, gpu, gpu_count, seller, price_usd, copies, usd_per_slot
        from marts.deployment_options
        where fits and usd_per_slot is not null
        qualify row_number() over (
            partition by price_kind, model, variant
            order by usd_per_slot, row_id, context_tokens, batch_size
        ) = 1
        order by price_kind, usd_per_slot, model, variant
        limit ?
        """,
        [limit],
    ).fetchall()
    fields = DeploymentOption.model_fields
    return [DeploymentOption(**dict(zip(fields, row, strict=True))) for row in rows]


def row_counts(connection: duckdb.DuckDBPyConnection) -> dict[str, int]:
    """Number of rows of every table and view of the warehouse, by `schema.name`."""
    names = connection.execute(
        "select table_schema, table_name from information_schema.tables "
        "where table_catalog = current_database() order by table_schema, table_name"
    ).fetchall()
    counts = {}
    for schema, name in names:
        query = f'select count(*) from "{schema}"."{name}"'  # noqa: S608
        counts[f"{schema}.{name}"] = int(connection.execute(query).fetchall()[0][0])
    return counts
