"""Percentiles, summaries and bootstrap intervals of run times."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from pydantic import BaseModel

BOOTSTRAP_RESAMPLES = 10_000
CONFIDENCE = 0.95
# With fewer runs, the 95th percentile is little more than the slowest one.
MINIMUM_RUNS_FOR_P95 = 20


class Summary(BaseModel):
    """Location and spread of a sample, in its own unit. No value is dropped as an outlier.

    Percentiles interpolate linearly between order statistics (Hyndman and Fan's type 7). `stddev`
    is the sample's (n - 1), null for one value.
    """

    p50: float
    p95: float
    mean: float
    stddev: float | None


def summarize(values: Sequence[float]) -> Summary:
    """Summarize at least one value."""
    array = np.asarray(values, dtype=np.float64)
    p50, p95 = np.percentile(array, [50, 95])
    return Summary(
        p50=float(p50),
        p95=float(p95),
        mean=float(array.mean()),
        stddev=float(array.std(ddof=1)) if array.size > 1 else None,
    )


@dataclass(frozen=True)
class Ratio:
    """A ratio of medians with its confidence interval."""

    ratio: float
    low: float
    high: float


class RateInterval(NamedTuple):
    """The bounds of a rate's interval, fractions from 0 to 1."""

    low: float
    high: float


def wilson_interval(successes: int, trials: int) -> RateInterval:
    """The 95% Wilson score interval of `successes` out of `trials` (Wilson, 1927).

    Unlike the normal approximation it stays within 0 and 1 and has a width at rates of 0 and 1.
    Without a trial any rate is possible.
    """
    if trials == 0:
        return RateInterval(0.0, 1.0)
    from scipy.stats import binomtest  # takes most of a second, and most commands need no interval

    interval = binomtest(successes, trials).proportion_ci(CONFIDENCE, method="wilson")
    return RateInterval(float(interval.low), float(interval.high))


def bootstrap_median_ratio(
    numerator: Sequence[float], denominator: Sequence[float], *, seed: int = 0
) -> Ratio:
    """median(numerator) / median(denominator) with a 95% percentile bootstrap interval.

    Both samples are resampled independently, with replacement (Efron and Tibshirani, An
    Introduction to the Bootstrap, chapter 13). The seed makes the result reproducible.
    """
    generator = np.random.default_rng(seed)
    resampled = []
    for values in (numerator, denominator):
        array = np.asarray(values, dtype=np.float64)
        drawn = generator.integers(0, array.size, size=(BOOTSTRAP_RESAMPLES, array.size))
        resampled.append(np.median(array[drawn], axis=1))
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(resampled[0] / resampled[1], [tail, 1 - tail])
    ratio = float(np.median(numerator) / np.median(denominator))
    return Ratio(ratio, float(low), float(high))
