"""The questions that the commands ask the marts."""

from typing import NamedTuple

import duckdb


class DeploymentOption(NamedTuple):
    """The cheapest offer of one kind for one variant; `usd_per_slot` is per copy of the model."""

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
    """For every variant the cheapest offer to rent and to buy, cheapest slots first."""
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
    return [DeploymentOption(*row) for row in rows]
