"""Intervals with the window as the unit: what they cover, and what a limit makes of them."""

import math
from collections.abc import Callable

import numpy as np
import pytest

from quant_assets.window_intervals import (
    Interval,
    certainly_exceeds,
    largest_values,
    mean_interval,
    percentile_interval,
    ratio_interval,
)

TOKENS, REPEATS = 255, 2000
NORMAL_95 = 1.96


def correlated(generator: np.random.Generator, windows: int) -> np.ndarray:
    """Windows x tokens with mean 0.02: a skewed part that a window's tokens share, and noise."""
    shared = 0.02 * generator.standard_gamma(4, size=(windows, 1)) / 4
    noise: np.ndarray = shared + generator.normal(0, 0.1, size=(windows, TOKENS))
    return noise


def coverage(windows: int, interval: Callable[[np.ndarray], Interval], true: float) -> float:
    generator = np.random.default_rng(windows)
    found = [interval(correlated(generator, windows)) for _ in range(REPEATS)]
    return float(np.mean([each.low <= true <= each.high for each in found]))


def by_window(values: np.ndarray) -> Interval:
    found = mean_interval(values.mean(axis=1).tolist())
    assert found is not None
    return found


def by_token(values: np.ndarray) -> Interval:
    error = NORMAL_95 * values.std(ddof=1) / math.sqrt(values.size)
    return Interval(values.mean() - error, values.mean() + error)


@pytest.mark.parametrize("windows", [3, 8, 30])
def test_the_interval_by_window_covers_and_the_one_by_token_does_not(windows: int):
    assert 0.93 <= coverage(windows, by_window, 0.02) <= 0.97
    assert coverage(windows, by_token, 0.02) < 0.80


def test_pairing_removes_what_makes_a_window_hard():
    generator = np.random.default_rng(1)
    hard = generator.normal(3, 0.5, size=30)  # the windows' own difficulty, nats per token
    lost = 0.05 + generator.normal(0, 0.01, size=30)
    paired = ratio_interval((hard + lost).tolist(), hard.tolist())
    assert paired is not None
    assert paired.low < math.exp(0.05) < paired.high
    assert paired.high - paired.low < 0.01
    unpaired = mean_interval(hard.tolist())
    assert unpaired is not None and unpaired.high - unpaired.low > 0.2


@pytest.mark.parametrize("windows", [4, 30])
def test_the_interval_of_the_99th_percentile_covers(windows: int):
    generator = np.random.default_rng(windows)

    def divergences(count: int) -> np.ndarray:
        shared = 0.25 * generator.normal(size=(count, 1))
        values: np.ndarray = np.exp(shared + generator.normal(size=(count, TOKENS)) - 4)
        return values

    true = np.percentile(divergences(20_000), 99)
    covered = []
    for _ in range(600):
        values = divergences(windows)
        found = _interval_of_p99(values)
        assert found is not None
        assert found.low <= np.percentile(values, 99) <= found.high
        covered.append(found.low <= true <= found.high)
    assert 0.91 <= np.mean(covered) <= 0.98


def _interval_of_p99(values: np.ndarray) -> Interval | None:
    shares = (values > np.percentile(values, 99)).mean(axis=1).tolist()
    return percentile_interval(shares, largest_values(values.ravel(), 99), values.size, 99)


def test_the_tail_that_is_kept_gives_the_quantiles_of_all_tokens():
    values = np.random.default_rng(0).gamma(1, size=(3, TOKENS))
    values[0] += 10  # one window has all the largest, the widest interval
    found = _interval_of_p99(values)
    assert found is not None
    shares = (values > np.percentile(values, 99)).mean(axis=1)
    reach = by_window(shares[:, None]).high - shares.mean()
    assert found.low == pytest.approx(np.quantile(values, 0.99 - reach))
    assert found.high == values.max()


def test_too_few_windows_have_no_interval():
    assert mean_interval([1.0]) is None and ratio_interval([1.0], [1.0]) is None
    assert mean_interval([1.0, 1.1]) is not None
    assert percentile_interval([0.01, 0.02], [1.0], 100, 99) is None


@pytest.mark.parametrize(
    ("value", "interval", "exceeded"),
    [
        (1.06, None, True),
        (1.05, None, False),
        (1.06, Interval(1.04, 1.08), False),
        (1.06, Interval(1.051, 1.07), True),
        (math.nan, None, True),
        (math.nan, Interval(math.nan, math.nan), True),
        (math.inf, Interval(math.nan, math.nan), True),
    ],
)
def test_a_limit_is_exceeded_when_the_interval_says_so(
    value: float, interval: Interval | None, exceeded: bool
):
    assert certainly_exceeds(value, interval, 1.05) == exceeded
