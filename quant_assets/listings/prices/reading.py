"""Price texts as sellers write them: amount, currency, and whether they buy a card or rent it."""

import math
import re
from dataclasses import dataclass

from quant_assets.listings.prices.amounts import read_amounts
from quant_assets.listings.prices.currencies import take_currency
from quant_assets.listings.prices.units import PriceKind, take_unit
from quant_assets.listings.quarantine import QuarantineReason

PLAUSIBLE_USD_PER_GPU: dict[PriceKind, tuple[float, float]] = {
    "purchase": (5.0, 250_000.0),
    "hourly": (0.005, 250.0),
}
"""Plausible range for one GPU; a price outside it is a placeholder or a typo."""

_SPACES = re.compile(r"[\s\u00a0\u202f]+")
_PER_GPU = re.compile(r"(?:/|\bper)\s*(?:gpu|card)\b|\beach\b|\bea\b|\bapiece\b")
_NO_PRICE = frozenset(
    {"n/a", "na", "none", "null", "nan", "-", "--", "tba", "tbd", "poa", "on request", "call"}
    | {"call for price", "price on request", "sold out", "auf anfrage", "?"}
)


@dataclass(frozen=True)
class Price:
    """One price as offered; `amount` is None when the offer has no price.

    The amount is for the whole offer, or for one of its GPUs if `per_gpu` is set. Of a range it is
    the upper end, so that an offer never looks cheaper than it is; `low_amount` is the lower end.
    Prices per second to year are converted to one hour.
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

    The currency is `default_currency` if neither the text nor the column states one. Without a unit
    the price is for a purchase.
    """
    if text is None or not text.strip() or text.strip().casefold() in _NO_PRICE:
        return Price()
    plain = _SPACES.sub(" ", text).strip().casefold()
    if len(plain) > 200:
        return Price(reason=QuarantineReason.UNREADABLE_PRICE)
    per_gpu = bool(_PER_GPU.search(plain) or _PER_GPU.search(f"/{unit or ''}".casefold()))
    hours, plain = take_unit(plain, unit)
    code, plain, fault = take_currency(plain, currency, default_currency)
    if fault is not None:
        return Price(reason=fault)
    kind: PriceKind = "purchase" if hours is None else "hourly"
    amounts = read_amounts(plain, code, kind)
    if isinstance(amounts, QuarantineReason):
        return Price(reason=amounts)
    if min(amounts) <= 0:
        return Price(reason=QuarantineReason.NEGATIVE_PRICE)
    scaled = sorted(amount / (hours or 1.0) for amount in amounts)
    if not math.isfinite(scaled[-1]):
        return Price(reason=QuarantineReason.ABSURD_PRICE)
    low = scaled[0] if len(scaled) == 2 and scaled[0] < scaled[1] else None
    return Price(scaled[-1], low, code, kind, per_gpu)
