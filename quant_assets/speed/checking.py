"""How true predicted speeds are: errors and intervals by phase, GPU, level, batch and depth.

One function serves `quant-assets speed check` on published runs and the graph's check on own ones.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from quant_assets.speed.workload import Phase, Prediction, Workload

MIN_RUNS: Final = 10
"""A limit is judged from this many runs on."""
DEEP_TOKENS: Final = 4096
"""Depth from which decoding several sequences is judged apart."""
_CHANCE: Final = 0.05
_DEPTHS: Final = ((0, "0-511"), (512, "512-4095"), (4096, "4096-16383"), (16384, "16384 and more"))
_PASSES: Final = ((0, "1-8"), (9, "9-64"), (65, "65-511"), (512, "512 and more"))


@dataclass(frozen=True, slots=True)
class PredictedRun:
    """A measured throughput (tokens/s of all sequences), and its prediction made without it.

    `gpu` is the registry's name. `level` is the label of the tables, by default the workload's
    weight type. `depth_tokens` is the mean depth.
    """

    row_id: str
    gpu: str
    workload: Workload
    measured: float
    prediction: Prediction | None
    level: str = ""
    depth_tokens: float = 0.0

    @property
    def error(self) -> float | None:
        """|predicted / measured - 1|; None without a prediction."""
        if self.prediction is None:
            return None
        return abs(self.prediction.tokens_per_s / self.measured - 1)


class ErrorFigures(BaseModel):
    """Errors |predicted / measured - 1| of `n` runs, and their 90 % intervals.

    `coverage` is the share of runs inside their interval, `mean_width` the mean of high / low. Null
    where no run was predicted.
    """

    model_config = ConfigDict(frozen=True)

    n: int
    median_error: float | None = None
    p90_error: float | None = None
    coverage: float | None = None
    mean_width: float | None = None


class PhaseFigures(BaseModel):
    """The figures of all runs of a phase, and by each property."""

    model_config = ConfigDict(frozen=True)

    all: ErrorFigures
    by_gpu: dict[str, ErrorFigures]
    by_level: dict[str, ErrorFigures]
    by_batch: dict[str, ErrorFigures]
    by_depth: dict[str, ErrorFigures]
    by_tokens_per_pass: dict[str, ErrorFigures]


class SpeedLimits(BaseModel):
    """The largest errors allowed, as shares of the measured speed; None is not judged.

    `decode_*` are of one sequence, `deep_batch_median` of several at `DEEP_TOKENS` or deeper.
    `coverage` bounds the share of runs inside their interval, `decode_width` the mean of high / low.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    decode_median: float | None = Field(default=None, gt=0)
    decode_p90: float | None = Field(default=None, gt=0)
    deep_batch_median: float | None = Field(default=None, gt=0)
    prefill_median: float | None = Field(default=None, gt=0)
    prefill_p90: float | None = Field(default=None, gt=0)
    coverage: tuple[float, float] | None = None
    decode_width: float | None = Field(default=None, gt=1)


PUBLISHED_LIMITS: Final = SpeedLimits(
    decode_median=0.08,
    decode_p90=0.20,
    deep_batch_median=0.15,
    prefill_median=0.15,
    prefill_p90=0.40,
    coverage=(0.85, 0.95),
    decode_width=1.6,
)
"""For published single-GPU runs of dense models, each GPU predicted from the others."""
OWN_LIMITS: Final = SpeedLimits(coverage=(0.85, 1.0), decode_width=3.0)
"""For own runs: a machine may be slower or faster than the published ones of its kind, and the
interval has to say so without being so wide that it says nothing."""


class Target(BaseModel):
    """A limit and what was found. `met` is null where fewer than `MIN_RUNS` runs judge it.

    A coverage misses its bounds only if chance hardly explains it (binomial test, 5 %).
    """

    model_config = ConfigDict(frozen=True)

    name: str
    n: int
    value: float | None
    low: float | None = None
    high: float
    met: bool | None


class SpeedCheck(BaseModel):
    """How true predicted speeds are. `not_predicted` runs are on GPUs that lack a figure."""

    model_config = ConfigDict(frozen=True)

    decode: PhaseFigures
    prefill: PhaseFigures
    targets: list[Target]
    not_predicted: int
    problems: list[str]

    @property
    def passed(self) -> bool:
        """No limit is exceeded; also true without any runs."""
        return not self.problems


def check_predictions(
    runs: Iterable[PredictedRun], limits: SpeedLimits = PUBLISHED_LIMITS
) -> SpeedCheck:
    """The figures of all predicted runs, and which limits they exceed."""
    every = list(runs)
    predicted = [run for run in every if run.prediction is not None]
    targets = list(_targets(predicted, limits))
    return SpeedCheck(
        decode=_phase(predicted, "decode"),
        prefill=_phase(predicted, "prefill"),
        targets=targets,
        not_predicted=len(every) - len(predicted),
        problems=[_problem(target) for target in targets if target.met is False],
    )


def error_figures(runs: Sequence[PredictedRun]) -> ErrorFigures:
    """The figures of some runs; those without a prediction do not count."""
    pairs = [(run.measured, run.prediction) for run in runs if run.prediction is not None]
    if not pairs:
        return ErrorFigures(n=0)
    measured = np.array([speed for speed, _ in pairs])
    predicted, low, high = (
        np.array([getattr(prediction, name) for _, prediction in pairs])
        for name in ("tokens_per_s", "low", "high")
    )
    errors = np.abs(predicted / measured - 1)
    return ErrorFigures(
        n=len(pairs),
        median_error=float(np.median(errors)),
        p90_error=float(np.quantile(errors, 0.9)),
        coverage=float(np.mean((low <= measured) & (measured <= high))),
        mean_width=float(np.mean(high / low)),
    )


def depth_label(tokens: float) -> str:
    """The range of depths that `tokens` belongs to."""
    return _range(tokens, _DEPTHS)


def _range(number: float, ranges: Sequence[tuple[int, str]]) -> str:
    return next(label for least, label in reversed(ranges) if number >= least)


def _phase(runs: Sequence[PredictedRun], phase: Phase) -> PhaseFigures:
    chosen = [run for run in runs if run.workload.phase == phase]
    depths = _by(chosen, lambda run: depth_label(run.depth_tokens))
    passes = _by(chosen, lambda run: _range(run.workload.tokens_per_pass, _PASSES))
    batches = _by(chosen, lambda run: str(run.workload.batch))
    return PhaseFigures(
        all=error_figures(chosen),
        by_gpu=_by(chosen, lambda run: run.gpu),
        by_level=_by(chosen, lambda run: run.level or run.workload.weight_type),
        by_batch={batch: batches[batch] for batch in sorted(batches, key=int)},
        by_depth={label: depths[label] for _, label in _DEPTHS if label in depths},
        by_tokens_per_pass={label: passes[label] for _, label in _PASSES if label in passes},
    )


def _by(
    runs: Sequence[PredictedRun], key: Callable[[PredictedRun], str]
) -> dict[str, ErrorFigures]:
    groups: dict[str, list[PredictedRun]] = {}
    for run in runs:
        groups.setdefault(key(run), []).append(run)
    return {name: error_figures(groups[name]) for name in sorted(groups)}


def _targets(runs: Sequence[PredictedRun], limits: SpeedLimits) -> Iterator[Target]:
    decode = [run for run in runs if run.workload.phase == "decode"]
    prefill = [run for run in runs if run.workload.phase == "prefill"]
    single = error_figures([run for run in decode if run.workload.batch == 1])
    deep = error_figures(
        [run for run in decode if run.workload.batch > 1 and run.depth_tokens >= DEEP_TOKENS]
    )
    first = error_figures(prefill)
    for name, figures, value, limit in (
        ("decode at batch 1, median error", single, single.median_error, limits.decode_median),
        ("decode at batch 1, 90th percentile", single, single.p90_error, limits.decode_p90),
        (
            f"decode at batch > 1 and depth >= {DEEP_TOKENS}, median error",
            deep,
            deep.median_error,
            limits.deep_batch_median,
        ),
        ("prefill, median error", first, first.median_error, limits.prefill_median),
        ("prefill, 90th percentile", first, first.p90_error, limits.prefill_p90),
    ):
        if limit is not None:
            yield _most(name, figures.n, value, limit)
    if limits.coverage is not None:
        for name, chosen in (("decode", decode), ("prefill", prefill)):
            yield _coverage(f"{name}, coverage of the 90 % interval", chosen, limits.coverage)
    if limits.decode_width is not None:
        figures = error_figures(decode)
        yield _most(
            "decode, mean width of the interval (high / low)",
            figures.n,
            figures.mean_width,
            limits.decode_width,
        )


def _most(name: str, n: int, value: float | None, limit: float) -> Target:
    judged = value is not None and n >= MIN_RUNS
    return Target(
        name=name,
        n=n,
        value=value,
        high=limit,
        met=bool(value <= limit) if judged and value is not None else None,
    )


def _coverage(name: str, runs: Sequence[PredictedRun], bounds: tuple[float, float]) -> Target:
    figures, (low, high) = error_figures(runs), bounds
    met = None
    if figures.coverage is not None and figures.n >= MIN_RUNS:
        from scipy import stats  # takes most of a second, and most commands judge nothing

        inside = round(figures.coverage * figures.n)
        too_few = stats.binom.cdf(inside, figures.n, low) < _CHANCE
        too_many = stats.binom.sf(inside - 1, figures.n, high) < _CHANCE
        met = not (too_few or too_many)
    return Target(name=name, n=figures.n, value=figures.coverage, low=low, high=high, met=met)


def _problem(target: Target) -> str:
    assert target.value is not None
    if target.low is not None:
        bounds = f"between {target.low:.0%} and {target.high:.0%} is allowed"
        return f"{target.name}: {target.value:.0%} of {target.n} runs; {bounds}."
    if target.high > 1:
        return (
            f"{target.name}: {target.value:.2f} over {target.n} runs; {target.high:g} is allowed."
        )
    return f"{target.name}: {target.value:.0%} over {target.n} runs; {target.high:.0%} is allowed."
