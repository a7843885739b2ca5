"""Time units of prices: whether a price buys a card or rents it, and for how many hours."""

import re
from typing import Literal

PriceKind = Literal["purchase", "hourly"]
"""A purchase of the card, or its rent for one hour."""

HOURS_PER_MONTH = 730.0
"""8760 hours per year / 12 months, the month that cloud providers bill."""

_UNIT_HOURS = {
    "second": 1 / 3600,
    "minute": 1 / 60,
    "hour": 1.0,
    "day": 24.0,
    "week": 168.0,
    "month": HOURS_PER_MONTH,
    "year": 8760.0,
}
_UNIT_WORDS = {
    "second": ("s", "sec", "second", "seconds"),
    "minute": ("min", "minute", "minutes"),
    "hour": ("h", "hr", "hrs", "hour", "hours", "hourly", "std", "stunde"),
    "day": ("d", "day", "days", "daily", "tag"),
    "week": ("w", "wk", "week", "weekly"),
    "month": ("mo", "mon", "mth", "month", "months", "monthly", "monat"),
    "year": ("y", "yr", "year", "annual", "annually", "yearly"),
}
_UNIT_OF_WORD = {word: unit for unit, words in _UNIT_WORDS.items() for word in words}
_PURCHASE_WORDS = frozenset(
    [
        "each",
        "ea",
        "unit",
        "piece",
        "pc",
        "pcs",
        "item",
        "purchase",
        "once",
        "one-time",
        "onetime",
        "buy",
        "sale",
        "total",
        "card",
        "gpu",
    ]
)
_UNIT = re.compile(
    r"(?:/|\bper\b|\ba\b|\bpro\b)\s*(?:(?:gpu|card)\s*[/-]?\s*)?([a-z]+)\b"
    r"|\b(hourly|monthly|daily)\b"
)


def take_unit(plain: str, column: str | None) -> tuple[float | None, str]:
    """Hours that the price pays for (None for a purchase), and the text without the unit."""
    hours: float | None = None
    match = _UNIT.search(plain)
    if match:
        word = match[1] or _UNIT_OF_WORD[match[2]]
        unit = _UNIT_OF_WORD.get(word)
        if unit is not None:
            hours = _UNIT_HOURS[unit]
        if unit is not None or word in _PURCHASE_WORDS:
            plain = (plain[: match.start()] + " " + plain[match.end() :]).strip()
    if hours is None and column:
        words = re.findall(r"[a-z]+", column.casefold())
        units = [_UNIT_OF_WORD[word] for word in words if word in _UNIT_OF_WORD]
        if units:
            hours = _UNIT_HOURS[units[-1]]
    return hours, plain
