"""The history of prices: one Parquet snapshot each time that an offer or its price changed."""

import datetime
from pathlib import Path

from quant_assets.atomic_files import atomic_path
from quant_assets.listings.stages import EnrichedListings

HISTORY_FOLDER = "history"
"""The folder of the snapshots, in the listings folder of the data root."""

_OFFERS = """
    SELECT md5(concat_ws(chr(31), seller, title, url, canonical_name, gpu_count, price_kind))
               AS offer_id,
           canonical_name, gpu_count, price_kind, seller, title, price_usd, price_per_gpu_usd
    FROM {rows}
    WHERE price_usd IS NOT NULL
    QUALIFY row_number() OVER (PARTITION BY offer_id ORDER BY price_usd, row_id) = 1
"""


def record_prices(enriched: EnrichedListings, folder: Path, at: datetime.datetime) -> Path | None:
    """Write the offers with a price as a snapshot of the time `at` (UTC) into `folder`.

    Returns the file, or None when the newest snapshot there holds the same offers and prices.
    Snapshots are never changed; files are named by time and content.
    """
    workspace = enriched.workspace
    offers = _OFFERS.format(rows=enriched.rows)
    (digest,) = workspace.query(
        f"""
        SELECT md5(coalesce(
            string_agg(concat_ws('=', offer_id, price_usd), ';' ORDER BY offer_id), ''
        ))
        FROM ({offers})
        """  # noqa: S608, own names
    )[0]
    newest = max(folder.glob("*.parquet"), default=None)
    if newest is not None and newest.stem.endswith(f"_{digest}"):
        return None
    stamp = at.astimezone(datetime.UTC)
    path = folder / f"{stamp:%Y%m%dT%H%M%S.%f}Z_{digest}.parquet"
    with atomic_path(path) as temporary:
        workspace.copy(
            f"SELECT CAST(? AS TIMESTAMPTZ) AS recorded_at, * FROM ({offers}) ORDER BY offer_id",  # noqa: S608, own names
            temporary,
            parameters=[stamp.isoformat()],
        )
    return path
