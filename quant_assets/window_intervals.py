"""Intervals of means over the windows of a text, and of ratios of two perplexities on them.

The tokens of a window share their subject and their context, so their losses are correlated, and an
interval from single tokens is too narrow. Windows are nearly independent of each other: the window
is the unit. Two models are compared window by window, because what makes a window hard is common to
both and cancels.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

CONFIDENCE = 0.95
_FEWEST_WINDOWS_OF_A_PERCENTILE = 3
_TAIL_SHARES = 6
"""The interval reaches at most this many times the share over the percentile.

It is widest when one window of three has all these tokens: 1 + 4.3, the quantile of Student's t with
two degrees of freedom.
"""


class Interval(NamedTuple):
    """The bounds of a 95% interval."""

    low: float
    high: float


def mean_interval(window_means: Sequence[float]) -> Interval | None:
    """The 95% interval of the mean of `window_means`, by Student's t; None for fewer than two.

    Student's t rather than a bootstrap: a window's mean is itself a mean of hundreds of tokens, so
    it is close to normal, and t is then right for any number of windows. Resampling a handful of
    windows gives intervals that are too narrow (for 8 windows by a factor of about 0.8), also with
    BCa's correction, which estimates a skewness from those few values.
    """
    values = np.asarray(window_means, dtype=np.float64)
    count = len(values)
    if count < 2:
        return None
    from scipy.special import stdtrit  # environments of workers have no scipy

    mean = float(values.mean())
    reach = float(stdtrit(count - 1, (1 + CONFIDENCE) / 2) * values.std(ddof=1) / math.sqrt(count))
    return Interval(mean - reach, mean + reach)


def ratio_interval(nll: Sequence[float], other_nll: Sequence[float]) -> Interval | None:
    """The 95% interval of a ratio of perplexities, paired by window; None for fewer than two.

    `nll` and `other_nll` are the windows' mean negative log-likelihoods per token, in nats, of the
    numerator and the denominator. The interval is that of the mean difference, exponentiated.
    """
    difference = mean_interval(np.subtract(nll, other_nll).tolist())
    if difference is None:
        return None
    return Interval(float(np.exp(difference.low)), float(np.exp(difference.high)))


def largest_values(values: npt.NDArray[np.float64], percentile: float) -> list[float]:
    """The largest of `values` in descending order, as many as `percentile_interval` needs."""
    count = math.ceil(_TAIL_SHARES * (1 - percentile / 100) * len(values)) + 1
    largest: list[float] = np.sort(values)[::-1][:count].tolist()
    return largest


def percentile_interval(
    window_shares: Sequence[float], largest: Sequence[float], count: int, percentile: float
) -> Interval | None:
    """The 95% interval of a high percentile of `count` tokens; None for fewer than three windows.

    `window_shares` are the shares of each window's tokens that are over the percentile, `largest`
    comes from `largest_values`. Woodruff's method (Journal of the American Statistical Association
    47, 1952), as surveys use it for clustered samples: the interval of the share that is over the
    percentile, by Student's t over the windows, is read off at the tokens' own quantiles. Of the
    alternatives, BCa's bootstrap over windows covers 70 to 90% with 4 to 8 windows where this
    covers 93 to 95%.
    """
    reached = mean_interval(window_shares)
    if reached is None or len(window_shares) < _FEWEST_WINDOWS_OF_A_PERCENTILE:
        return None
    share = 1 - percentile / 100
    reach = (reached.high - reached.low) / 2

    def quantile(share_over: float) -> float:
        return float(np.interp(share_over * (count - 1), np.arange(len(largest)), largest))

    return Interval(quantile(share + reach), quantile(share - reach))


def certainly_exceeds(value: float, interval: Interval | None, limit: float) -> bool:
    """Whether `value` is over an upper limit by more than its error.

    The lower bound of its interval decides; without an interval, as in older records, the value
    itself. NaN exceeds every limit.
    """
    lowest = value if interval is None else interval.low
    return math.isnan(value) or not lowest <= limit
