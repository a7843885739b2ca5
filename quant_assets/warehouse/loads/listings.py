"""Tables from the Parquet snapshots of the listings: the stages, and the history of prices."""

import datetime
from pathlib import Path

import duckdb

from quant_assets.duckdb_files import READ_OPTIONS, exact_pattern
from quant_assets.errors import InputError
from quant_assets.listings.store import LISTING_TABLES, ListingTable
from quant_assets.warehouse.loads.tables import count_rows
from quant_assets.warehouse.price_history import intact_snapshots

_HISTORY = f"""
    select
        recorded_at::timestamptz as recorded_at, offer_id::varchar as offer_id,
        canonical_name::varchar as canonical_name, gpu_count::bigint as gpu_count,
        price_kind::varchar as price_kind, seller::varchar as seller, title::varchar as title,
        price_usd::double as price_usd, price_per_gpu_usd::double as price_per_gpu_usd
    from read_parquet(?, union_by_name => true, {READ_OPTIONS})
"""  # noqa: S608


def load_listing_table(
    connection: duckdb.DuckDBPyConnection, table: ListingTable, parquet: Path
) -> int:
    """Replace a listing table by the content of a Parquet snapshot; return its row count.

    Raises `InputError` for a damaged snapshot.
    """
    assert table in LISTING_TABLES  # a table name cannot be bound as a parameter
    try:
        connection.execute(
            f"create or replace table raw.{table} as "  # noqa: S608
            f"select * from read_parquet(?, {READ_OPTIONS})",
            [exact_pattern(parquet)],
        ).fetchall()
    except duckdb.Error as error:
        raise InputError(
            f"The listings {parquet} cannot be read.",
            str(error),
            "Refresh the listings (`make demo`, or the job `refresh_listings`), which rewrites them.",
        ) from error
    return count_rows(connection, table)


def load_listing_history(connection: duckdb.DuckDBPyConnection, folder: Path) -> int:
    """Load `raw.listing_history` from the snapshots in `folder`; return its row count.

    Damaged snapshots are left out: without them the others still are a history.
    """
    connection.execute("delete from raw.listing_history").fetchall()
    now = datetime.datetime.now(datetime.UTC)
    snapshots = [exact_pattern(path) for path in intact_snapshots(folder, now)]
    if snapshots:
        connection.execute(
            f"insert into raw.listing_history by name {_HISTORY}",
            [snapshots],
        ).fetchall()
    return count_rows(connection, "listing_history")
