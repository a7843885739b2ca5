"""The columns of a listing file, recognized by their usual header names."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from quant_assets.errors import InputError


def _names(text: str) -> tuple[str, ...]:
    return tuple(text.split())


_ALIASES = {
    "title": _names(
        "title listing_title product_title offer_title name product_name item_name listing product "
        "item offer gpu_name gpu_model gpu model canonical_name description"
    ),
    "seller": _names("seller seller_name vendor shop store merchant provider cloud marketplace"),
    "price_text": _names(
        "price price_text list_price unit_price sale_price amount price_usd usd_price price_eur "
        "price_gbp cost hourly_price price_per_hour price_hourly hourly_rate usd_per_hour "
        "price_usd_per_hour price_per_hour_usd hourly_price_usd price_h usd_h"
    ),
    "currency": _names("currency currency_code price_currency ccy"),
    "price_unit": _names("price_unit unit period billing_period price_period per billing"),
    "url": _names("url link href product_url listing_url offer_url permalink"),
    "condition": _names("condition item_condition state"),
    "region": _names("region location country zone"),
    "gpu_count_text": _names("gpu_count_text gpu_count num_gpus gpus number_of_gpus n_gpus"),
    "listed_at": _names("listed_at date listed scraped_at fetched_at timestamp created_at seen_at"),
}
"""Header names per column, most specific first; compared without case and punctuation."""

TEXT_COLUMNS = tuple(_ALIASES)
"""The columns of a raw listing, all of them text exactly as written."""

MAX_COLUMNS = 10_000
"""A file with more columns, counted over all rows of a JSON file, does not contain listings."""

_HOURLY_HEADER = re.compile(r"hour|(?:^|_)h(?:$|_)")
_CURRENCY_HEADER = re.compile(r"(?:^|_)(usd|eur|gbp)(?:$|_)")


@dataclass(frozen=True)
class ColumnMap:
    """Positions of a raw listing's columns in a file, and what its headers state about prices."""

    positions: dict[str, int]
    """Column of a raw listing -> index in the file."""
    others: dict[str, int]
    """The file's other columns: name as written -> index in the file."""
    currency: str | None = None
    """Currency stated by the header of the price column, as in `price_eur`."""
    price_unit: str | None = None
    """"hour" when the header of the price column says so."""

    @cached_property
    def labels(self) -> dict[int, str]:
        """Index of another column -> its name."""
        return {index: label for label, index in self.others.items()}


def header_key(name: str) -> str:
    """A header name in its comparable form: `Price / Hour` becomes `price_hour`."""
    return re.sub(r"[^a-z0-9]+", "_", name.casefold().replace("$", " usd ")).strip("_")


def map_columns(header: Sequence[str]) -> ColumnMap | None:
    """Recognize the columns of `header`; None when no column is a title."""
    keys = [header_key(name) for name in header]
    positions: dict[str, int] = {}
    for column, aliases in _ALIASES.items():
        found = next((keys.index(alias) for alias in aliases if alias in keys), None)
        if found is not None:
            positions[column] = found
    if "title" not in positions:
        return None
    used = set(positions.values())
    others: dict[str, int] = {}
    for index, name in enumerate(header):
        if index not in used:
            label = name.strip() or f"column_{index + 1}"
            while label in others:
                label = f"{label}_{index + 1}"
            others[label] = index
    price_key = keys[positions["price_text"]] if "price_text" in positions else ""
    currency = _CURRENCY_HEADER.search(price_key)
    return ColumnMap(
        positions,
        others,
        currency=currency[1].upper() if currency else None,
        price_unit="hour" if _HOURLY_HEADER.search(price_key) else None,
    )


def require_columns(header: Sequence[str], file: Path) -> ColumnMap:
    """Recognize the columns of `header`; raise `InputError` without a title, or with too many."""
    if len(header) > MAX_COLUMNS:
        raise InputError(
            f"The file {file} has {len(header)} columns (line 1).",
            f"Listings have at most {MAX_COLUMNS}.",
            "Keep the columns that describe the offers.",
        )
    columns = map_columns(header)
    if columns is None:
        shown = ", ".join(repr(name[:60]) for name in header[:20]) or "none"
        raise InputError(
            f"The file {file} has no column with a title of the offer (line 1).",
            f"Its columns are: {shown}.",
            "Name one column 'title' (or name, product, model), and separate the columns by a "
            "comma, semicolon, tab or vertical bar.",
        )
    return columns
