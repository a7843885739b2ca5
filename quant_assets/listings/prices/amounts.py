"""Amounts in price texts: numbers with any usual separators, and ranges."""

import re

from quant_assets.listings.prices.units import PriceKind
from quant_assets.listings.quarantine import QuarantineReason

_NUMBER = r"\d[\d.,' ’]*"
_AMOUNT = re.compile(rf"(?<![\d.,])(-\s?|\((?=[\d.,]+\)))?({_NUMBER})(?:,-|\.-|,–)?")
_RANGE = re.compile(r"\s*(?:-|–|—|to|bis|\.\.+)\s*")
_FREE_TEXT = re.compile(
    r"\b(?:from|starting at|approx\.?|about|now|only|price|list|msrp|rrp|incl\.?|excl\.?|vat|tax"
    r"|obo|or best offer|negotiable|ab|ca\.?|per|up to|between|and|each|ea|gpu|card|a|unit|uvp)\b"
)
_PLAIN_NUMBER = re.compile(r"\d+(?:\.\d{1,2}|\.\d{4,})?")
_GROUPED = {
    ",": re.compile(r"\d{1,3}(?:,\d{3})+(?:\.\d+)?"),
    ".": re.compile(r"\d{1,3}(?:\.\d{3})+(?:,\d+)?"),
    "'": re.compile(r"\d{1,3}(?:'\d{3})+(?:[.,]\d+)?"),
    " ": re.compile(r"\d{1,3}(?: \d{3})+(?:[.,]\d+)?"),
}
_DECIMAL_COMMA = re.compile(r"\d+,\d{1,2}|\d+,\d{4,}|0,\d+")
_DECIMAL_POINT_THREE = re.compile(r"\d{1,3}\.\d{3}")
_INDIAN = re.compile(r"\d{1,2}(?:,\d{2})+,\d{3}(?:\.\d+)?")


def read_amounts(plain: str, currency: str, kind: PriceKind) -> list[float] | QuarantineReason:
    """The one or two amounts in a text without currency and unit, or why it cannot be read."""
    found = list(_AMOUNT.finditer(plain))
    if not 1 <= len(found) <= 2:
        return QuarantineReason.UNREADABLE_PRICE
    between = _FREE_TEXT.sub(" ", plain[found[0].end() : found[-1].start()]) if found[1:] else ""
    if len(found) == 2:
        minus = found[1][1] or ""
        if not _RANGE.fullmatch(between + minus) and " and " not in plain:
            return QuarantineReason.UNREADABLE_PRICE
    rest = plain[: found[0].start()] + " " + plain[found[-1].end() :]
    if re.search(r"[^\s.,:;()*+~/|!–—-]", _FREE_TEXT.sub(" ", rest)):
        return QuarantineReason.UNREADABLE_PRICE
    amounts = []
    for position, match in enumerate(found):
        amount = _number(match[2], currency, kind)
        if isinstance(amount, QuarantineReason):
            return amount
        # A minus between two amounts is the dash of a range; brackets mean a negative amount.
        negative = bool(match[1]) and position == 0
        amounts.append(-amount if negative else amount)
    return amounts


def _number(text: str, currency: str, kind: PriceKind) -> float | QuarantineReason:
    """Parse a number; three digits after a lone point are thousands, decimals, or ambiguous."""
    text = text.strip(" .,'’").replace("’", "'")
    if _PLAIN_NUMBER.fullmatch(text):
        return float(text)
    if _DECIMAL_POINT_THREE.fullmatch(text):
        if text.startswith("0.") or kind == "hourly":
            return float(text)
        if currency == "USD":
            return QuarantineReason.AMBIGUOUS_PRICE
        return float(text.replace(".", ""))
    if _DECIMAL_COMMA.fullmatch(text):
        return float(text.replace(",", "."))
    for separator, pattern in _GROUPED.items():
        if pattern.fullmatch(text):
            return float(text.replace(separator, "").replace(",", "."))
    if currency == "INR" and _INDIAN.fullmatch(text):
        return float(text.replace(",", ""))
    return QuarantineReason.UNREADABLE_PRICE
