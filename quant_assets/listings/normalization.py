"""Raw rows -> rows with a card and a price, or a reason for quarantine; duplicates collapsed.

Each distinct title and price is read once; DuckDB joins the results to the rows.
"""

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from quant_assets.gpus.registry import GpuRegistry
from quant_assets.listings.matching.matcher import TitleMatch
from quant_assets.listings.matching.processes import TitleMatching
from quant_assets.listings.prices.exchange_rates import ExchangeRates, load_exchange_rates
from quant_assets.listings.prices.reading import PLAUSIBLE_USD_PER_GPU, read_price
from quant_assets.listings.quarantine import QuarantineReason
from quant_assets.listings.stages import NormalizedListings, RawListings
from quant_assets.listings.workspace import Workspace

MAX_GPU_COUNT = 1024
"""A larger number of GPUs in one offer is a typo."""

_CANDIDATE_SEPARATOR = "; "
_OFFER_COLUMNS = (
    "seller",
    "canonical_name",
    "gpu_count",
    "price_key",
    "condition",
    "region",
    "coalesce(url, title)",
)
"""Two rows with equal values here are the same offer."""


def normalize(
    raw: RawListings,
    registry: GpuRegistry,
    *,
    rates: ExchangeRates | None = None,
    default_currency: str = "USD",
) -> NormalizedListings:
    """Find the card and read the price of every row; collapse duplicates.

    Two rows are duplicates when seller, card, number of GPUs, price, condition, region and URL (or
    title, without a URL) are equal. The first one is kept and counts the others in
    `collapsed_duplicates`. `rates` default to the project's dated rates; `default_currency` applies
    to prices without a currency.
    """
    rates = rates or load_exchange_rates()
    workspace = raw.workspace
    titles_query = f"SELECT DISTINCT title FROM {raw.rows} WHERE title IS NOT NULL"  # noqa: S608, own names
    distinct = [title for (title,) in workspace.query(titles_query)]
    matching = TitleMatching(distinct, registry, Path(workspace.folder.name))
    prices = _read_prices(workspace, raw.rows, rates, default_currency)
    titles = _add_matches(workspace, matching.matches())
    classified = _classify(workspace, raw.rows, titles, prices)
    for table in (titles, prices):
        workspace.query(f"DROP TABLE {table}")
    quarantined = _quarantine(workspace, raw, classified)
    return NormalizedListings(workspace, _collapse_duplicates(workspace, classified), quarantined)


def _add_matches(workspace: Workspace, matches: Sequence[TitleMatch]) -> str:
    """Create a table with the match of each distinct title."""
    frame = pd.DataFrame(
        {
            "title": _texts([match.title for match in matches]),
            "canonical_name": _texts([match.canonical_name for match in matches]),
            "match_type": _texts([match.match_type for match in matches]),
            "match_score": pd.Series([match.match_score for match in matches], dtype="float64"),
            "title_gpu_count": pd.Series([match.gpu_count for match in matches], dtype="int64"),
            "title_reason": _texts([match.reason for match in matches]),
            "candidates": _texts(
                [_CANDIDATE_SEPARATOR.join(match.candidates) or None for match in matches]
            ),
        }
    )
    return workspace.add_frame("title_matches", frame)


def _read_prices(
    workspace: Workspace, rows: str, rates: ExchangeRates, default_currency: str
) -> str:
    """Create a table with each distinct combination of price, currency and unit, as read."""
    texts = workspace.query(f"SELECT DISTINCT price_text, currency, price_unit FROM {rows}")  # noqa: S608, own names
    prices = [read_price(*text, default_currency=default_currency) for text in texts]
    usd = [
        None
        if price.amount is None or price.currency is None
        else rates.usd(price.amount, price.currency)
        for price in prices
    ]
    frame = pd.DataFrame(
        {
            "price_text": _texts([text[0] for text in texts]),
            "currency": _texts([text[1] for text in texts]),
            "price_unit": _texts([text[2] for text in texts]),
            "amount": pd.Series([price.amount for price in prices], dtype="float64"),
            "low_amount": pd.Series([price.low_amount for price in prices], dtype="float64"),
            "price_currency": _texts([price.currency for price in prices]),
            "price_kind": _texts([price.kind for price in prices]),
            "amount_usd": pd.Series(usd, dtype="float64"),
            "per_gpu": pd.Series([price.per_gpu for price in prices], dtype="bool"),
            "price_reason": _texts([price.reason for price in prices]),
            # Equal for equal prices, however they are written.
            "price_key": _texts(
                [
                    str((price.amount, price.low_amount, price.currency, price.kind, price.per_gpu))
                    for price in prices
                ]
            ),
        }
    )
    return workspace.add_frame("price_readings", frame)


def _texts(values: Sequence[str | None]) -> "pd.Series[str]":
    """A text column; it stays text even if all values are null."""
    return pd.Series([None if value is None else str(value) for value in values], dtype="str")


def _classify(workspace: Workspace, rows: str, titles: str, prices: str) -> str:
    """Create a table of all rows with their card, price and first reason for quarantine, if any."""
    reasons = workspace.new_name("reason")
    codes = ", ".join(f"'{reason}'" for reason in QuarantineReason)
    workspace.query(f"CREATE TYPE {reasons} AS ENUM ({codes})")
    limits = " ".join(
        f"WHEN price_kind = '{kind}' THEN amount_usd / priced_gpus NOT BETWEEN {low} AND {high}"
        for kind, (low, high) in PLAUSIBLE_USD_PER_GPU.items()
    )
    same_offer = ", ".join(f"coalesce({column}::VARCHAR, chr(30))" for column in _OFFER_COLUMNS)
    return workspace.keep(
        "classified",
        f"""
        WITH joined AS (
            SELECT raw.* EXCLUDE (currency), titles.* EXCLUDE (title),
                   prices.* EXCLUDE (price_text, price_unit, currency),
                   TRY_CAST(raw.gpu_count_text AS DOUBLE) AS stated_gpu_count
            FROM {rows} AS raw
            LEFT JOIN {titles} AS titles ON raw.title = titles.title
            LEFT JOIN {prices} AS prices
                ON raw.price_text IS NOT DISTINCT FROM prices.price_text
                AND raw.currency IS NOT DISTINCT FROM prices.currency
                AND raw.price_unit IS NOT DISTINCT FROM prices.price_unit
        ), counted AS (
            SELECT *, TRY_CAST(coalesce(stated_gpu_count, title_gpu_count, 1) AS BIGINT) AS gpu_count,
                   CASE WHEN per_gpu THEN 1
                        ELSE greatest(coalesce(stated_gpu_count, title_gpu_count, 1), 1)
                   END AS priced_gpus,
                   gpu_count_text IS NOT NULL AND (
                       stated_gpu_count IS NULL
                       OR stated_gpu_count NOT BETWEEN 1 AND {MAX_GPU_COUNT}
                       OR stated_gpu_count != floor(stated_gpu_count)
                       OR (title_gpu_count > 1 AND title_gpu_count != stated_gpu_count)
                   ) AS bad_gpu_count
            FROM joined
        )
        SELECT position, row_id, source_file, line_number, title, seller, url, condition, region,
               listed_at, canonical_name, match_type, match_score, gpu_count, price_text,
               CASE WHEN per_gpu THEN amount * gpu_count ELSE amount END AS price,
               CASE WHEN per_gpu THEN low_amount * gpu_count ELSE low_amount END AS price_low,
               price_currency AS currency, price_kind,
               amount_usd * CASE WHEN per_gpu THEN gpu_count ELSE 1 END AS price_usd,
               amount_usd / priced_gpus AS price_per_gpu_usd, extra, candidates,
               md5_number(concat_ws(chr(31), {same_offer})) AS offer_key,
               coalesce(
                   CASE WHEN title IS NULL THEN '{QuarantineReason.MISSING_TITLE}' END,
                   title_reason,
                   CASE WHEN bad_gpu_count THEN '{QuarantineReason.INVALID_GPU_COUNT}' END,
                   price_reason,
                   CASE WHEN CASE {limits} ELSE false END
                        THEN '{QuarantineReason.ABSURD_PRICE}' END
               )::{reasons} AS reason
        FROM counted
        """,  # noqa: S608, own names and numbers
        workspace.count(rows),
    )


def _quarantine(workspace: Workspace, raw: RawListings, classified: str) -> str:
    """All rows that have a reason for quarantine, with its explanation."""
    reasons = workspace.add_frame(
        "reasons",
        pd.DataFrame(
            {
                "reason": [reason.value for reason in QuarantineReason],
                "words": [reason.words for reason in QuarantineReason],
            }
        ),
    )
    return workspace.keep(
        "quarantined",
        f"""
        SELECT row_id, source_file, line_number, title, price_text, seller, url, reason,
               concat_ws(' ', words, nullif(detail, '')) AS explanation, candidates
        FROM (
            SELECT row_id, source_file, line_number, title, price_text, seller, url,
                   reason::VARCHAR AS reason, candidates, '' AS detail
            FROM {classified} WHERE reason IS NOT NULL
            UNION ALL
            SELECT row_id, source_file, line_number, title, NULL, NULL, NULL, reason, NULL, detail
            FROM {raw.rejected}
        ) JOIN {reasons} USING (reason)
        ORDER BY source_file, line_number
        """,  # noqa: S608, own names
        workspace.count(f"{classified} WHERE reason IS NOT NULL") + workspace.count(raw.rejected),
    )


def _collapse_duplicates(workspace: Workspace, classified: str) -> str:
    """Create a view of the rows to enrich, one per offer."""
    # Only keys and positions are compared; the wide rows are read once, at the end.
    first, repeats = workspace.new_name("first_offers"), workspace.new_name("repeated_offers")
    workspace.query(
        f"""
        CREATE TABLE {first} AS
        SELECT offer_key, min(position) AS position, count(*) - 1 AS others
        FROM {classified} WHERE reason IS NULL GROUP BY offer_key HAVING count(*) > 1
        """  # noqa: S608, own names
    )
    workspace.query(
        f"""
        CREATE TABLE {repeats} AS
        SELECT offers.position
        FROM {classified} AS offers JOIN {first} AS kept USING (offer_key)
        WHERE offers.reason IS NULL AND offers.position != kept.position
        """  # noqa: S608, own names
    )
    rows = workspace.new_name("normalized")
    workspace.query(
        f"""
        CREATE VIEW {rows} AS
        SELECT * EXCLUDE (others, extra, candidates, offer_key, reason),
               coalesce(others, 0) AS collapsed_duplicates, extra
        FROM {classified}
        LEFT JOIN (SELECT position, others FROM {first}) USING (position)
        ANTI JOIN {repeats} USING (position)
        WHERE reason IS NULL
        """  # noqa: S608, own names
    )
    return rows
