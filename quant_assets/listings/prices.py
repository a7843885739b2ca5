"""What a price text says: amount, currency, and whether it buys the card or rents it by the hour."""

import math
import re
from dataclasses import dataclass
from typing import Literal

from quant_assets.listings.quarantine import QuarantineReason

PriceKind = Literal["purchase", "hourly"]

HOURS_PER_MONTH = 730.0
"""8760 hours of a year over 12 months, as cloud providers bill a month."""

PLAUSIBLE_USD_PER_GPU: dict[PriceKind, tuple[float, float]] = {
    "purchase": (5.0, 250_000.0),
    "hourly": (0.005, 250.0),
}
"""What one GPU can cost; outside it a price is a placeholder or a slip of the pen."""

_SIGNS = {
    "us$": "USD",
    "usd$": "USD",
    "ca$": "CAD",
    "c$": "CAD",
    "a$": "AUD",
    "au$": "AUD",
    "nz$": "NZD",
    "hk$": "HKD",
    "s$": "SGD",
    "r$": "BRL",
    "mx$": "MXN",
    "€": "EUR",
    "£": "GBP",
    "cn¥": "CNY",
    "元": "CNY",
    "rmb": "CNY",
    "jp¥": "JPY",
    "円": "JPY",
    "₹": "INR",
    "₩": "KRW",
    "₪": "ILS",
    "₺": "TRY",
    "฿": "THB",
    "zł": "PLN",
    "kč": "CZK",
    "fr.": "CHF",
    "euro": "EUR",
    "euros": "EUR",
    "eur": "EUR",
    "dollar": "USD",
    "dollars": "USD",
}
_SHARED_SIGNS = {
    "$": ("USD", "CAD", "AUD", "NZD", "HKD", "SGD", "MXN"),
    "¥": ("JPY", "CNY"),
    "kr": ("SEK", "NOK", "DKK"),
}
"""Signs of several currencies; the column decides, and a bare `$` is the US dollar."""

_SIGN = re.compile(
    "|".join(
        (rf"(?<![a-z]){re.escape(sign)}" if sign[0].isalpha() else re.escape(sign)).replace(
            r"\$", r"\s?\$"
        )
        + ("(?![a-z])" if sign[-1].isalpha() else "")
        for sign in sorted((*_SIGNS, *_SHARED_SIGNS), key=len, reverse=True)
    )
)

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

_BARE_NUMBER = re.compile(r"\$? ?\d[\d.,]*")
"""The usual price, in which there are no words to look for."""
_SPACES = re.compile(r"[\s\u00a0\u202f]+")
_NUMBER = r"\d[\d.,' ’]*"
_AMOUNT = re.compile(rf"(?<![\d.,])(-\s?|\((?=[\d.,]+\)))?({_NUMBER})(?:,-|\.-|,–)?")
_UNIT = re.compile(
    r"(?:/|\bper\b|\ba\b|\bpro\b)\s*(?:(?:gpu|card)\s*[/-]?\s*)?([a-z]+)\b"
    r"|\b(hourly|monthly|daily)\b"
)
_PER_GPU = re.compile(r"(?:/|\bper)\s*(?:gpu|card)\b|\beach\b|\bea\b|\bapiece\b")
_RANGE = re.compile(r"\s*(?:-|–|—|to|bis|\.\.+)\s*")
_FREE_TEXT = re.compile(
    r"\b(?:from|starting at|approx\.?|about|now|only|price|list|msrp|rrp|incl\.?|excl\.?|vat|tax"
    r"|obo|or best offer|negotiable|ab|ca\.?|per|up to|between|and|each|ea|gpu|card|a|unit|uvp)\b"
)


@dataclass(frozen=True)
class Price:
    """One price as offered; `amount` is None where no price is given.

    It is for the whole offer, or for one of its GPUs where `per_gpu` is set. A range counts with its upper end, so that it never looks cheaper than it is; `low_amount` is
    its lower end. Prices per day, week, month or year are brought to one hour.
    """

    amount: float | None = None
    low_amount: float | None = None
    currency: str | None = None
    kind: PriceKind | None = None
    per_gpu: bool = False
    reason: QuarantineReason | None = None


def read_price(
    text: str | None,
    currency: str | None = None,
    unit: str | None = None,
    *,
    default_currency: str = "USD",
) -> Price:
    """Read a price text with the currency and unit columns of its row; never raises.

    Without a currency in the text or the column it is `default_currency`. Without a unit the price
    buys the card.
    """
    if text is None or not text.strip() or text.strip().casefold() in _NO_PRICE:
        return Price()
    plain = _SPACES.sub(" ", text).strip().casefold()
    if len(plain) > 200:
        return Price(reason=QuarantineReason.UNREADABLE_PRICE)
    per_gpu = bool(_PER_GPU.search(plain) or _PER_GPU.search(f"/{unit or ''}".casefold()))
    hours, plain = _take_unit(plain, unit)
    code, plain, fault = _take_currency(plain, currency, default_currency)
    if fault is not None:
        return Price(reason=fault)
    kind: PriceKind = "purchase" if hours is None else "hourly"
    amounts = _amounts(plain, code, kind)
    if isinstance(amounts, QuarantineReason):
        return Price(reason=amounts)
    if min(amounts) <= 0:
        return Price(reason=QuarantineReason.NEGATIVE_PRICE)
    scaled = sorted(amount / (hours or 1.0) for amount in amounts)
    if not math.isfinite(scaled[-1]):
        return Price(reason=QuarantineReason.ABSURD_PRICE)
    low = scaled[0] if len(scaled) == 2 and scaled[0] < scaled[1] else None
    return Price(scaled[-1], low, code, kind, per_gpu)


_NO_PRICE = frozenset(
    {"n/a", "na", "none", "null", "nan", "-", "--", "tba", "tbd", "poa", "on request", "call"}
    | {"call for price", "price on request", "sold out", "auf anfrage", "?"}
)


def _take_unit(plain: str, column: str | None) -> tuple[float | None, str]:
    """Hours that the price pays for (None: it buys the card), and the text without the unit."""
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


def _take_currency(
    plain: str, column: str | None, default: str
) -> tuple[str, str, QuarantineReason | None]:
    """The ISO code, the text without currency words, and what is wrong with the currency."""
    codes: set[str] = set()
    shared: set[str] = set()
    if _BARE_NUMBER.fullmatch(plain):
        shared = {"$"} if plain[0] == "$" else set()
        plain = plain.lstrip("$ ")
        return _agreed(codes, shared, plain, column, default)
    for found in _SIGN.findall(plain):
        sign = found.replace(" ", "")
        if sign in _SIGNS:
            codes.add(_SIGNS[sign])
        else:
            shared.add(sign)
    plain = _SIGN.sub(" ", plain)
    for code in re.findall(r"(?<![a-z])[a-z]{3}(?![a-z])", plain):
        if code.upper() in _ISO_CODES:
            codes.add(code.upper())
            plain = re.sub(rf"(?<![a-z]){code}(?![a-z])", " ", plain)
    return _agreed(codes, shared, plain, column, default)


def _agreed(
    codes: set[str], shared: set[str], plain: str, column: str | None, default: str
) -> tuple[str, str, QuarantineReason | None]:
    """The currency that the text's codes and signs and the column agree on."""
    stated = _code_of_column(column)
    if stated == "":
        return "", plain, QuarantineReason.UNKNOWN_CURRENCY
    if stated is not None:
        codes.add(stated)
    if len(codes) > 1:
        return "", plain, QuarantineReason.CURRENCY_CONFLICT
    for sign in shared:
        allowed = _SHARED_SIGNS[sign]
        if not codes and sign != "$":
            return "", plain, QuarantineReason.UNKNOWN_CURRENCY
        if codes and not codes & set(allowed):
            return "", plain, QuarantineReason.CURRENCY_CONFLICT
    if codes:
        return codes.pop(), plain, None
    return ("USD" if "$" in shared else default), plain, None


_ISO_CODES = frozenset(
    set(_SIGNS.values())
    | {code for group in _SHARED_SIGNS.values() for code in group}
    | {"HUF", "ZAR", "CHF"}
)


def _code_of_column(column: str | None) -> str | None:
    """The ISO code of a currency column: None when empty, "" when it is no known currency."""
    if column is None or not column.strip():
        return None
    word = column.strip().casefold()
    if word.upper() in _ISO_CODES:
        return word.upper()
    if word == "$":
        return "USD"
    return _SIGNS.get(word, "")


def _amounts(plain: str, currency: str, kind: PriceKind) -> list[float] | QuarantineReason:
    """The one or two amounts in a text without currency and unit, or what is wrong with it."""
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
        # A minus between two amounts is the dash of a range; accountants bracket what they owe.
        negative = bool(match[1]) and position == 0
        amounts.append(-amount if negative else amount)
    return amounts


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


def _number(text: str, currency: str, kind: PriceKind) -> float | QuarantineReason:
    """A number with any usual separators; three digits after a lone point can mean two things."""
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
