"""Prices as sellers write them, and properties that hold for any price."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from quant_assets.listings.prices.reading import read_price
from quant_assets.listings.prices.units import HOURS_PER_MONTH
from quant_assets.listings.quarantine import QuarantineReason


@pytest.mark.parametrize(
    ("text", "currency", "amount", "code"),
    [
        ("$12,490.00", None, 12490.0, "USD"),
        ("US $120.00", None, 120.0, "USD"),
        ("€1.299,00", None, 1299.0, "EUR"),
        ("1 299,00 €", None, 1299.0, "EUR"),
        ("€1.200", None, 1200.0, "EUR"),
        ("CHF 1'299.–", None, 1299.0, "CHF"),
        ("R$ 5.499,90", None, 5499.9, "BRL"),
        ("₹1,45,000", None, 145000.0, "INR"),
        ("C$ 1,899.99", None, 1899.99, "CAD"),
        ("1299", "eur", 1299.0, "EUR"),
        ("$1299", "CAD", 1299.0, "CAD"),
        ("5000 kr", "SEK", 5000.0, "SEK"),
        ("1299,-", None, 1299.0, "USD"),
        ("$1,200 (OBO)", None, 1200.0, "USD"),
    ],
)
def test_amount_and_currency(text: str, currency: str | None, amount: float, code: str) -> None:
    price = read_price(text, currency)
    assert price.reason is None
    assert (price.amount, price.currency, price.kind) == (pytest.approx(amount), code, "purchase")


@pytest.mark.parametrize(
    ("text", "unit", "hourly", "per_gpu"),
    [
        ("$2.49/hr", None, 2.49, False),
        ("2.49 USD per hour", None, 2.49, False),
        ("0,526 €/h", None, 0.526, False),
        ("1.206", "hour", 1.206, False),
        ("$1,460/month", None, 1460 / HOURS_PER_MONTH, False),
        ("0.00021/s", None, 0.756, False),
        ("$3.50 per GPU-hour", None, 3.5, True),
        ("3.5", "GPU-hour", 3.5, True),
    ],
)
def test_prices_per_time_unit_are_converted_to_one_hour(
    text: str, unit: str | None, hourly: float, per_gpu: bool
) -> None:
    price = read_price(text, None, unit)
    assert (price.amount, price.kind) == (pytest.approx(hourly), "hourly")
    assert price.per_gpu is per_gpu


@pytest.mark.parametrize("text", ["$1,200 - $1,500", "from 1200 to 1500 USD", "1500–1200"])
def test_a_range_counts_with_its_upper_end(text: str) -> None:
    price = read_price(text)
    assert (price.low_amount, price.amount) == (1200.0, 1500.0)


@pytest.mark.parametrize(
    ("text", "currency", "reason"),
    [
        ("-5", None, QuarantineReason.NEGATIVE_PRICE),
        ("-$5", None, QuarantineReason.NEGATIVE_PRICE),
        ("(45.00)", None, QuarantineReason.NEGATIVE_PRICE),
        ("$0", None, QuarantineReason.NEGATIVE_PRICE),
        ("1.200", None, QuarantineReason.AMBIGUOUS_PRICE),
        ("¥5000", None, QuarantineReason.UNKNOWN_CURRENCY),
        ("500 kr", None, QuarantineReason.UNKNOWN_CURRENCY),
        ("5", "doubloons", QuarantineReason.UNKNOWN_CURRENCY),
        ("$5", "EUR", QuarantineReason.CURRENCY_CONFLICT),
        ("€5", "USD", QuarantineReason.CURRENCY_CONFLICT),
        ("12e5", None, QuarantineReason.UNREADABLE_PRICE),
        ("$1.899.99", None, QuarantineReason.UNREADABLE_PRICE),
        ("1200 1300", None, QuarantineReason.UNREADABLE_PRICE),
        ("=cmd|' /C calc'!A0", None, QuarantineReason.UNREADABLE_PRICE),
    ],
)
def test_an_unreadable_price_has_a_reason(
    text: str, currency: str | None, reason: QuarantineReason
) -> None:
    price = read_price(text, currency)
    assert (price.reason, price.amount) == (reason, None)


@pytest.mark.parametrize("text", [None, "", "  ", "N/A", "on request", "-"])
def test_a_missing_price_is_not_a_fault(text: str | None) -> None:
    price = read_price(text)
    assert (price.amount, price.reason) == (None, None)


@given(st.integers(min_value=1, max_value=99_999_999))
def test_separators_do_not_change_an_amount(cents: int) -> None:
    amount = cents / 100
    for text in (
        f"${amount:,.2f}",
        f"{amount:.2f} USD",
        f"USD {f'{amount:,.2f}'.replace(',', ' ')}",
        f"{f'{amount:,.2f}'.translate(str.maketrans(',.', '.,'))} $",
    ):
        assert read_price(text).amount == pytest.approx(amount), text


@given(st.integers(min_value=1, max_value=10**6), st.integers(min_value=1, max_value=10**6))
def test_a_range_may_be_written_in_either_order(one: int, other: int) -> None:
    price = read_price(f"${one:,} - ${other:,}")
    assert price.amount == max(one, other)
    assert price.low_amount == (None if one == other else min(one, other))


@given(st.text(max_size=60), st.none() | st.text(max_size=12), st.none() | st.text(max_size=12))
@example("9" * 400, None, None)
@example("٣٤", None, None)
def test_any_text_gives_a_positive_price_or_none_or_a_reason(
    text: str, currency: str | None, unit: str | None
) -> None:
    price = read_price(text, currency, unit)
    if price.amount is None:
        assert price.currency is None
    else:
        assert price.reason is None
        assert 0 < price.amount < float("inf")
        assert price.low_amount is None or 0 < price.low_amount < price.amount
