"""Currencies of prices, from signs and codes in the text and from the currency column."""

import re

from quant_assets.listings.quarantine import QuarantineReason

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
"""Signs that several currencies share: the column decides; `$` alone is the US dollar."""

_SIGN = re.compile(
    "|".join(
        (rf"(?<![a-z]){re.escape(sign)}" if sign[0].isalpha() else re.escape(sign)).replace(
            r"\$", r"\s?\$"
        )
        + ("(?![a-z])" if sign[-1].isalpha() else "")
        for sign in sorted((*_SIGNS, *_SHARED_SIGNS), key=len, reverse=True)
    )
)
_ISO_CODES = frozenset(
    set(_SIGNS.values())
    | {code for group in _SHARED_SIGNS.values() for code in group}
    | {"HUF", "ZAR", "CHF"}
)
_BARE_NUMBER = re.compile(r"\$? ?\d[\d.,]*")
"""The most common form of price, without any words to search for."""


def take_currency(
    plain: str, column: str | None, default: str
) -> tuple[str, str, QuarantineReason | None]:
    """The ISO 4217 code, the text without currency words, and why the currency is refused, if so."""
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
    """`take_currency`'s result, if the text's codes, its signs and the column agree."""
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


def _code_of_column(column: str | None) -> str | None:
    """The ISO code of a currency column; None when empty, "" when the currency is unknown."""
    if column is None or not column.strip():
        return None
    word = column.strip().casefold()
    if word.upper() in _ISO_CODES:
        return word.upper()
    if word == "$":
        return "USD"
    return _SIGNS.get(word, "")
