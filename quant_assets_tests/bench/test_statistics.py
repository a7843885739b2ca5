import pytest
from hypothesis import given
from hypothesis import strategies as st

from quant_assets.bench.statistics import bootstrap_median_ratio, summarize, wilson_interval

TIMES = st.lists(st.floats(0.1, 1e6), min_size=1, max_size=50)


def test_percentiles_interpolate_between_order_statistics() -> None:
    summary = summarize(list(range(1, 21)))
    assert summary.p50 == 10.5
    assert abs(summary.p95 - 19.05) < 1e-9
    assert summary.mean == 10.5
    assert summary.stddev is not None and abs(summary.stddev - 35**0.5) < 1e-9


def test_outliers_are_kept() -> None:
    assert summarize([1.0] * 19 + [1000.0]).mean == 50.95


def test_one_value_has_no_spread() -> None:
    assert summarize([3.0]).stddev is None


@given(TIMES)
def test_percentiles_lie_inside_the_sample(values: list[float]) -> None:
    summary = summarize(values)
    assert min(values) <= summary.p50 <= summary.p95 <= max(values)


def test_the_interval_covers_a_true_difference_and_is_reproducible() -> None:
    slow = [20.0, 20.4, 19.8, 20.2, 20.1, 19.9]
    fast = [10.0, 10.2, 9.9, 10.1, 10.0, 10.1]
    ratio = bootstrap_median_ratio(slow, fast)
    assert ratio.low <= ratio.ratio <= ratio.high
    assert ratio.low > 1.9 and ratio.high < 2.1
    assert ratio == bootstrap_median_ratio(slow, fast)


def test_equal_samples_give_an_interval_around_one() -> None:
    values = [9.0, 10.0, 11.0, 10.5, 9.5]
    ratio = bootstrap_median_ratio(values, values)
    assert ratio.ratio == 1.0
    assert ratio.low < 1.0 < ratio.high


@pytest.mark.parametrize(
    ("successes", "trials", "low", "high"),
    # Wilson's closed form with z = 1.959964: (p + z²/2n ± z sqrt(p(1-p)/n + z²/4n²)) / (1 + z²/n).
    [(12, 24, 0.314274, 0.685726), (0, 24, 0.0, 0.137975), (24, 24, 0.862025, 1.0)],
)
def test_wilson_intervals_follow_the_closed_form(
    successes: int, trials: int, low: float, high: float
) -> None:
    interval = wilson_interval(successes, trials)
    assert (interval.low, interval.high) == pytest.approx((low, high), abs=1e-5)
