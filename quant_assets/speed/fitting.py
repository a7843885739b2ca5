"""Fits the speed model to measured runs, and predicts each GPU from the others.

The logarithms of the factors in `pass_time` are fitted by their likelihood (normal priors,
pseudo-Huber loss of the errors), so that a key with few runs borrows from all others. Standard
deviations come from the curvature at the optimum (Laplace's approximation).
"""

import datetime
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from quant_assets.errors import InputError
from quant_assets.gpus.registry import Gpu, GpuRegistry
from quant_assets.speed.model import (
    SCOPES,
    Calibration,
    Factor,
    FittedRegime,
    Residuals,
    Scope,
    SpeedModel,
)
from quant_assets.speed.pass_time import (
    FACTORS,
    REGIMES,
    Cases,
    Floats,
    PassKind,
    Regime,
    cases,
    log_seconds,
    pass_kind,
    rows_of,
    slopes,
)
from quant_assets.speed.workload import Observation, Prediction

NOISE: Final[Mapping[Regime, float]] = {"few_tokens": 0.1, "many_tokens": 0.2}
"""Usual spread (of the logarithm) of a run around a good model: clocks, cooling, drivers; for
prefill, kernels chosen by shape as well."""
_EQUAL_WEIGHT_RUNS: Final = 8  # a card with more weighs like one with so many
_TAILS: Final = (0.05, 0.95)
_LEAST_RUNS, _LEAST_CARDS = 30, 4  # of a scope with residuals of its own
_FOLDS: Final = 5
_LEAST_SPREAD: Final = 0.03  # two runs of one card differ by as much

_Indexes = npt.NDArray[np.intp]


class _Runs(NamedTuple):
    """Observations of one regime: their columns, log(seconds), weights, and kinds of passes."""

    columns: Cases
    log_seconds: Floats
    weights: Floats
    kinds: list[PassKind]

    def take(self, rows: Sequence[int]) -> "_Runs":
        return _Runs(
            self.columns.take(rows),
            self.log_seconds[rows],
            self.weights[rows],
            [self.kinds[row] for row in rows],
        )


class _Design:
    """The parameters of a regime's factors for some cases: a base, and a deviation per key."""

    def __init__(self, regime: Regime, columns: Cases) -> None:
        self.regime, self.columns = regime, columns
        self.names: list[tuple[str, str, str]] = []
        self.members: dict[str, list[_Indexes]] = {}
        start: list[float] = []
        spread: list[float] = []
        for factor, prior in FACTORS[regime].items():
            self.names.append((factor, "", ""))
            start.append(float(np.log(prior.value)))
            spread.append(prior.spread)
            self.members[factor] = [np.full(len(columns), len(start) - 1, dtype=np.intp)]
            for group, deviation in prior.groups.items():
                keys = columns.keys[group]
                index = {key: len(start) + n for n, key in enumerate(sorted(set(keys)))}
                self.names += [(factor, group, key) for key in index]
                start += [0.0] * len(index)
                spread += [deviation] * len(index)
                self.members[factor].append(np.array([index[key] for key in keys], dtype=np.intp))
        self.start, self.spread = np.array(start), np.array(spread)

    def logs(self, parameters: Floats) -> dict[str, Floats]:
        return {
            factor: np.sum([parameters[index] for index in indexes], axis=0)
            for factor, indexes in self.members.items()
        }

    def at(self, fitted: FittedRegime) -> Floats:
        """The parameters of an earlier fit; the starting values of keys that it lacks."""
        return np.array(
            [
                start if (value := _parameter(fitted, *name)) is None else value
                for name, start in zip(self.names, self.start, strict=True)
            ]
        )

    def jacobian(self, parameters: Floats) -> Floats:
        """d log(seconds) / d parameters: one difference per factor, spread over its parameters."""
        rows = np.arange(len(self.columns))
        result = np.zeros((len(self.columns), len(self.start)))
        for factor, slope in slopes(self.regime, self.columns, self.logs(parameters)).items():
            for index in self.members[factor]:
                result[rows, index] += slope
        return result


def fit_speed_model(
    observations: Sequence[Observation],
    registry: GpuRegistry,
    sources: Iterable[str] = (),
) -> SpeedModel:
    """The model that explains the observations best, with residuals of cross-validation.

    Raises `InputError` for GPUs outside the registry, or too few runs.
    """
    gpus = _gpus(observations, registry)
    _check_enough(observations, gpus)
    return _model(_hold_out_all(observations, gpus), sources)


def cross_validated(
    observations: Sequence[Observation], registry: GpuRegistry
) -> list[Prediction | None]:
    """Each observation predicted by a model that has seen no card of its family.

    The interval, too, rests on residuals of the other families alone.
    """
    held = _hold_out_all(observations, _gpus(observations, registry))
    return _predictions(held, observations)


def fit_and_cross_validate(
    observations: Sequence[Observation], registry: GpuRegistry, sources: Iterable[str] = ()
) -> tuple[SpeedModel, list[Prediction | None]]:
    """`fit_speed_model` and `cross_validated` from the same fits without each family."""
    gpus = _gpus(observations, registry)
    _check_enough(observations, gpus)
    held = _hold_out_all(observations, gpus)
    return _model(held, sources), _predictions(held, observations)


class _Error(NamedTuple):
    """A held-out run: log(measured / predicted tokens/s), the predicted spread, its scope."""

    error: float
    sd: float
    scope: Scope
    runs: int
    family: str
    kind: PassKind
    weight: float


def _check_enough(observations: Sequence[Observation], gpus: Sequence[Gpu]) -> None:
    for regime in REGIMES:
        usable = len(rows_of(regime, gpus, [item.workload for item in observations]))
        if usable < _LEAST_RUNS:
            raise InputError(
                "The speed model cannot be fitted.",
                f"Only {usable} usable runs are of passes with {regime.replace('_', ' ')}; "
                f"{_LEAST_RUNS} are needed.",
                "Add decoding runs and prefill runs of several GPUs.",
            )


class _HeldOut(NamedTuple):
    """The usable observations of a regime, the fit to all of them, and each without its family.

    `rows` are their places among all observations.
    """

    rows: list[int]
    gpus: list[Gpu]
    runs: _Runs
    fitted: FittedRegime
    errors: list[_Error]


def _hold_out_all(
    observations: Sequence[Observation], gpus: Sequence[Gpu]
) -> dict[Regime, _HeldOut]:
    """The regimes that have usable observations."""
    workloads = [item.workload for item in observations]
    found = {}
    for regime in REGIMES:
        rows = rows_of(regime, gpus, workloads)
        if not rows:
            continue
        chosen = [gpus[row] for row in rows]
        runs = _runs([observations[row] for row in rows], chosen)
        fitted = _fit(regime, runs, chosen)
        errors = _held_out(regime, runs, chosen, [gpu.family for gpu in chosen], fitted)
        found[regime] = _HeldOut(rows, chosen, runs, fitted, errors)
    return found


def _model(held: Mapping[Regime, _HeldOut], sources: Iterable[str]) -> SpeedModel:
    """The fits with the intervals that follow from their errors on what they had not seen."""
    regimes = {}
    for regime, part in held.items():
        seen = _held_out(regime, part.runs, part.gpus, _folds(part.runs.columns), part.fitted)
        calibrations = _calibrations(part.errors, seen)
        regimes[regime] = part.fitted.model_copy(update={"calibrations": calibrations})
    return SpeedModel(
        fitted_on=datetime.datetime.now(datetime.UTC).date(),
        runs=sum(len(part.rows) for part in held.values()),
        gpus=len({gpu.canonical_name for part in held.values() for gpu in part.gpus}),
        sources=tuple(sorted(set(sources))),
        regimes=regimes,
    )


def _predictions(
    held: Mapping[Regime, _HeldOut], observations: Sequence[Observation]
) -> list[Prediction | None]:
    found: list[Prediction | None] = [None] * len(observations)
    for part in held.values():
        calibrations: dict[tuple[str, PassKind], Calibration] = {}
        for row, error in zip(part.rows, part.errors, strict=True):
            place = (error.family, error.kind)
            if place not in calibrations:
                others = [other for other in part.errors if other.family != error.family]
                calibrations[place] = _calibration(others, error.kind)
            calibration = calibrations[place]
            found[row] = calibration.prediction(
                observations[row].tokens_per_s / float(np.exp(error.error)),
                float(calibration.spread(np.array(error.sd))),
                error.scope,
                error.runs,
            )
    return found


def _gpus(observations: Sequence[Observation], registry: GpuRegistry) -> list[Gpu]:
    missing = {item.gpu for item in observations} - set(registry.by_name)
    if missing:
        raise InputError(
            "Some runs are on GPUs that the registry does not have.",
            f"Unknown: {', '.join(sorted(missing))}.",
            "Add them to `data/gpus.yaml`, or leave those runs out.",
        )
    return [registry.by_name[item.gpu] for item in observations]


def _runs(observations: Sequence[Observation], gpus: Sequence[Gpu]) -> _Runs:
    columns = cases(gpus, [item.workload for item in observations])
    speeds = np.array([item.tokens_per_s for item in observations])
    counts = Counter(gpu.family for gpu in gpus)
    weights = np.array(
        [
            item.weight * min(1.0, _EQUAL_WEIGHT_RUNS / counts[gpu.family]) ** 0.5
            for item, gpu in zip(observations, gpus, strict=True)
        ]
    )
    kinds = [pass_kind(item.workload) for item in observations]
    return _Runs(columns, np.log(columns.figures["tokens"] / speeds), weights, kinds)


def _fit(
    regime: Regime, runs: _Runs, gpus: Sequence[Gpu], near: FittedRegime | None = None
) -> FittedRegime:
    """The factors that explain the runs best; the search starts at those of `near`."""
    from scipy.optimize import minimize  # slow to load, and most commands fit nothing

    design = _Design(regime, runs.columns)
    start = design.start if near is None else design.at(near)
    scale = runs.weights / NOISE[regime]

    def errors(parameters: Floats) -> Floats:
        predicted = log_seconds(regime, runs.columns, design.logs(parameters))
        scaled: Floats = (predicted - runs.log_seconds) * scale
        return scaled

    # Pseudo-Huber loss: quadratic near 0, linear for outliers.
    def unlikeliness(parameters: Floats) -> float:
        loss = np.sum(np.sqrt(1 + errors(parameters) ** 2) - 1)
        return float(loss + 0.5 * np.sum(((parameters - design.start) / design.spread) ** 2))

    def gradient(parameters: Floats) -> Floats:
        raw = errors(parameters)
        slope: Floats = (raw / np.sqrt(1 + raw**2) * scale) @ design.jacobian(parameters)
        slope += (parameters - design.start) / design.spread**2
        return slope

    def curvature(parameters: Floats) -> Floats:
        weight = scale**2 / np.sqrt(1 + errors(parameters) ** 2)
        jacobian = design.jacobian(parameters)
        curved: Floats = (jacobian * weight[:, None]).T @ jacobian + np.diag(design.spread**-2)
        return curved

    solution = minimize(
        unlikeliness,
        start,
        jac=gradient,
        hess=curvature,
        method="trust-exact",
        options={"gtol": 0.05, "maxiter": 200, "initial_trust_radius": 3.0, "max_trust_radius": 30},
    )
    sds = np.sqrt(np.diag(np.linalg.inv(curvature(solution.x))))
    return FittedRegime(
        factors=_factors(design, solution.x, sds),
        noise=NOISE[regime],
        runs_by_gpu=_counts(gpus, lambda gpu: gpu.canonical_name),
        runs_by_architecture=_counts(gpus, lambda gpu: gpu.architecture),
        runs_by_maker=_counts(gpus, lambda gpu: gpu.vendor),
    )


def _parameter(fitted: FittedRegime, factor: str, group: str, key: str) -> float | None:
    known = fitted.factors[factor]
    if not group:
        return float(np.log(known.value))
    deviation = known.deviations.get(group, {}).get(key)
    return None if deviation is None else deviation[0]


def _factors(design: _Design, parameters: Floats, sds: Floats) -> dict[str, Factor]:
    bases: dict[str, tuple[float, float]] = {}
    deviations: dict[str, dict[str, dict[str, tuple[float, float]]]] = {}
    for (factor, group, key), value, sd in zip(design.names, parameters, sds, strict=True):
        if group:
            kept = (round(float(value), 4), round(float(sd), 4))
            deviations.setdefault(factor, {}).setdefault(group, {})[key] = kept
        else:
            bases[factor] = (float(np.exp(value)), float(sd))
    return {
        factor: Factor(
            value=float(f"{value:.5g}"), sd=round(sd, 4), deviations=deviations.get(factor, {})
        )
        for factor, (value, sd) in bases.items()
    }


def _counts(gpus: Sequence[Gpu], name: Callable[[Gpu], str]) -> dict[str, int]:
    return dict(sorted(Counter(map(name, gpus)).items()))


def _folds(columns: Cases) -> list[str]:
    """Folds that hold out a weight type and model size of a card, but never the card."""
    layers = columns.figures["layers"]
    groups = sorted(
        {(gpu, kind, n) for gpu, kind, n in zip(
            columns.keys["gpu"], columns.keys["weight_type"], layers, strict=True)}
    )  # fmt: skip
    fold = {group: str(place % _FOLDS) for place, group in enumerate(groups)}
    return [
        fold[group]
        for group in zip(columns.keys["gpu"], columns.keys["weight_type"], layers, strict=True)
    ]


def _held_out(
    regime: Regime, runs: _Runs, gpus: Sequence[Gpu], parts: Sequence[str], whole: FittedRegime
) -> list[_Error]:
    """Every run predicted by a fit to the runs of all other parts; `whole` is the fit to all."""
    found: dict[int, _Error] = {}
    for part in sorted(set(parts)):
        inside = [row for row, name in enumerate(parts) if name == part]
        others = [row for row, name in enumerate(parts) if name != part]
        if not others:
            continue
        model = _fit(regime, runs.take(others), [gpus[row] for row in others], near=whole)
        held = runs.take(inside)
        logs, variance = model.logs(regime, held.columns)
        errors = log_seconds(regime, held.columns, logs) - held.log_seconds
        for place, row in enumerate(inside):
            scope, count = model.scope(gpus[row])
            found[row] = _Error(
                float(errors[place]),
                float(variance[place]) ** 0.5,
                scope,
                count,
                gpus[row].family,
                runs.kinds[row],
                float(held.weights[place]),
            )
    return [found[row] for row in range(len(parts))]


def _calibrations(
    unseen: Sequence[_Error], seen: Sequence[_Error]
) -> Mapping[PassKind, Calibration]:
    """Intervals of each kind of pass: of cards that the fit has seen, and of others."""
    known = [error for error in seen if error.scope == "this GPU"]
    return {
        kind: _calibration(unseen, kind, known or seen)
        for kind in sorted({error.kind for error in unseen})
    }


def _calibration(
    unseen: Sequence[_Error], kind: PassKind, seen: Sequence[_Error] = ()
) -> Calibration:
    """How the errors of one kind of pass spread, by scope."""
    errors = [error for error in unseen if error.kind == kind] or list(unseen)
    floor, share = _spread(errors)
    bare = Calibration(floor=floor, share=share)
    known = [error for error in seen if error.kind == kind] or errors
    return bare.model_copy(
        update={
            "scopes": {
                scope: _of_scope(bare, known if scope == "this GPU" else errors, scope)
                for scope in SCOPES
            }
        }
    )


def _spread(errors: Sequence[_Error]) -> tuple[float, float]:
    """The floor, and the share of the claimed deviations, that make the errors likeliest.

    The likelihood is Laplace's, since a few errors are large.
    """
    from scipy.optimize import minimize  # as in `_fit`

    size = np.abs([error.error for error in errors])
    claimed = np.array([error.sd for error in errors])
    weights = np.array([error.weight for error in errors]) ** 2

    def unlikeliness(logs: Floats) -> float:
        spread = np.hypot(np.exp(logs[0]), np.exp(logs[1]) * claimed)
        return float(np.sum(weights * (np.log(spread) + size / spread)))

    found = minimize(unlikeliness, np.log([0.1, 0.3]), method="Nelder-Mead")
    floor, share = np.exp(found.x)
    return round(max(float(floor), _LEAST_SPREAD), 4), round(float(share), 4)


def _of_scope(calibration: Calibration, errors: Sequence[_Error], scope: Scope) -> Residuals:
    """The quantiles of a scope; those of all where it has few runs or cards."""
    own = [error for error in errors if error.scope == scope]
    if len(own) < _LEAST_RUNS or len({error.family for error in own}) < _LEAST_CARDS:
        own = list(errors)
    logs = np.array([error.error for error in own])
    scaled = logs / calibration.spread(np.array([error.sd for error in own]))
    weights = np.array([error.weight for error in own]) ** 2
    low, high = np.quantile(scaled, _TAILS, weights=weights, method="inverted_cdf")
    return Residuals(
        low=round(float(low), 3),
        high=round(float(high), 3),
        runs=len(own),
        gpus=len({error.family for error in own}),
        median_error=round(float(np.median(np.abs(np.exp(-logs) - 1))), 4),
    )
