"""Decoding speed of one processor, fitted to a few runs of its own.

A decoding step of B sequences takes, in seconds,

    layers x launch                                                      starting the operations
    + sum over weight types t of (bytes read / bandwidth
                                  + B x parameters x arithmetic) x f(t, B)   the matrices
    + K multiply-adds x attention x g(K type)
    + V multiply-adds x attention x h(V type)                                  the attention

`launch`, `bandwidth`, `arithmetic` and `attention` are the processor's. f, g and h are what its
kernels make of a type: how dearly a type is unpacked, and which kernel a batch size gets (llama.cpp
multiplies one row by another routine than several, and some types by repacked blocks). They are
log-normal around 1, and correlated: by batch size, by family of types and by bits per weight, so a
type without runs borrows from its neighbours. The whole is off by a small factor of the model's
weights at a batch size, which a run of them reveals. The parameters are the most probable ones given the
runs (`scipy.optimize.least_squares` with the priors as residuals), the intervals follow from their
covariance at that point (Laplace's method; MacKay, Information Theory, Inference, and Learning
Algorithms, 2003, chapter 27), widened or narrowed by how well each run is predicted from the
others.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Final, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from quant_assets.formats.ggml_types import GGML_TYPES

Matrix = NDArray[np.float64]

CONFIDENCE: Final = 0.9

# Priors: medians of a two-core x86 server, and how far (standard deviation of the logarithm) other
# processors are from them. All four share `_MACHINE_SD`: a slow machine is slow in everything.
_LAUNCH_S: Final = 1e-5
_BANDWIDTH_BYTES_PER_S: Final = 2e10
_ARITHMETIC_S: Final = 3e-11
_ATTENTION_S: Final = 2e-10
_MACHINE_SD: Final = 1.0
_CONSTANT_SDS: Final = (0.7, 0.5, 0.5, 0.7)

_KERNEL_TYPE_SD: Final = 0.3  # of a type at every batch size
_KERNEL_BATCH_SD: Final = 0.4  # of a batch size for every type
_KERNEL_SD: Final = 0.35  # of a type at one batch size
_CACHE_TYPE_SD: Final = 1.0
_MIXTURE_SD: Final = 0.08  # of a model's weights at one batch size
_MODEL_SD: Final = 0.15  # of a model as a whole: its shapes, its place in the caches
_BACKEND_SD: Final = 0.5

_FAMILY_SHARE: Final = 0.4  # of the variance that types of a family share
_ALL_SHARE: Final = 0.2  # of the variance that all types share
_BITS_SCALE: Final = 2.0  # bits per weight over which neighbours of a family lose touch
_REGIME_SHARE: Final = 0.2  # of the variance that one row and several rows share
_BATCH_SCALE: Final = 2.0  # doublings of the batch over which it loses touch

_RUN_SD: Final = 0.015  # of the median of a run's repetitions, on an otherwise idle machine
_OTHER_BUILD_SD: Final = 0.1  # more, for a run of another build of the engine
_CELL_SD: Final = 0.02  # of what no parameter of the model describes
_PRIOR_FREEDOM: Final = 6.0  # how many runs the assumed standard deviations are worth

_MACHINE_PRIOR: Final = np.hstack([np.full((4, 1), _MACHINE_SD), np.diag(_CONSTANT_SDS)])


class WeightTraffic(NamedTuple):
    """The matrices of one tensor type in a decoding step.

    `read` parameters are read once per step; `multiplied` is their number for one token. They
    differ in a mixture of experts. `bits` are those of one parameter.
    """

    type_name: str
    bits: float
    read: float
    multiplied: float


@dataclass(frozen=True)
class HostCell:
    """A variant served on a processor: `batch` sequences decode after prompts of `prompt_tokens`.

    `k_products` and `v_products` are the multiply-adds of one step with the K and with the V
    cache, all sequences together, in the middle of the generated part.
    """

    model: str
    variant: str
    backend: str
    batch: int
    prompt_tokens: int
    generated_tokens: int
    layers: int
    weights: tuple[WeightTraffic, ...]
    k_type: str
    k_products: float
    v_type: str
    v_products: float

    @property
    def key(self) -> tuple[str, str, int, int, int]:
        """The measurement that gives this cell's speed."""
        return self.model, self.variant, self.batch, self.prompt_tokens, self.generated_tokens


@dataclass(frozen=True)
class HostRun:
    """A measured cell: tokens/s of all sequences, and the relative spread of the run's repetitions.

    `current_build` is false for a run of another build of the engine than the one asked about.
    """

    cell: HostCell
    tokens_per_s: float
    relative_spread: float = 0.0
    current_build: bool = True

    @property
    def sd(self) -> float:
        """Standard deviation of the logarithm of the speed."""
        build = 0.0 if self.current_build else _OTHER_BUILD_SD
        return math.sqrt(_RUN_SD**2 + self.relative_spread**2 + build**2)


class HostPrediction(NamedTuple):
    """Decoding speed of a cell, all sequences together, with its 90 % interval.

    `runs`: those of this very cell where `basis` is measured, else those that the fit used.
    """

    tokens_per_s: float
    low: float
    high: float
    basis: Literal["measured", "estimated"]
    runs: int


def predict_host(runs: Sequence[HostRun], cells: Sequence[HostCell]) -> list[HostPrediction]:
    """The speed of each cell on the processor of the runs; at least one run is needed.

    A cell that the current build has run has the speed of its runs, not of the fit.
    """
    measured: dict[tuple[object, ...], list[HostRun]] = {}
    for run in runs:
        if run.current_build:
            measured.setdefault(run.cell.key, []).append(run)
    fit = _Fit(runs, cells)
    predictions = []
    for cell, middle, sd in zip(cells, fit.log_speeds, fit.sds, strict=True):
        own = measured.get(cell.key)
        if own:
            middle = float(np.median([math.log(run.tokens_per_s) for run in own]))
            half = _reach(len(own) - 1) * max(run.sd for run in own)
        else:
            half = fit.reach * sd
        low, high = (math.exp(middle + side * half) for side in (-1, 1))
        basis: Literal["measured", "estimated"] = "measured" if own else "estimated"
        predictions.append(
            HostPrediction(math.exp(middle), low, high, basis, len(own) if own else len(runs))
        )
    return predictions


def cells_to_measure(cells: Sequence[HostCell], count: int) -> list[int]:
    """Indices of the `count` cells whose runs determine best what to choose, in order.

    First the cells that tell cache types apart: equal weights and batch size with each pair of
    caches, where attention counts most (at most a quarter of all). Caches change a speed little, so
    the second rule alone would leave them to the end; but they decide among variants of equal
    weights. Then, one after the other, the cell whose run lowers most the summed standard deviations
    of all predictions, at the priors, before anything has been measured (a greedy optimum design;
    Atkinson, Donev and Tobias, Optimum Experimental Designs, 2007, chapters 10 and 12): each weight
    type, with one sequence and with many, where the model knows least and most cells depend on it.
    Of cells of equal weights and batch size these are the ones with the plainest caches, whose
    attention, cheap on a processor, hides the weights least.
    """
    terms = _Terms(cells)
    each = terms.sensitivity(np.zeros(terms.n_parameters))
    covariance = each @ each.T
    noise = _RUN_SD**2 + _CELL_SD**2
    groups = _of_equal_weights(cells)
    first = max(groups, key=lambda places: (len(places), _attention_share(cells[places[0]])))
    plain = {places[0] for places in groups}
    chosen = first[: count // 4]
    for place in chosen:
        covariance = _after_run(covariance, place, noise)
    while len(chosen) < min(count, len(cells)):
        open_places = (plain or set(range(len(cells)))) - set(chosen)
        if not open_places:
            plain = set()
            continue
        after = np.diag(covariance)[:, None] - covariance**2 / (np.diag(covariance) + noise)
        left = np.sqrt(np.maximum(after, 0.0)).sum(axis=0)
        chosen.append(min(open_places, key=lambda place: (float(left[place]), place)))
        covariance = _after_run(covariance, chosen[-1], noise)
    return chosen


def _after_run(covariance: Matrix, place: int, noise: float) -> Matrix:
    """The covariance of all predictions when the cell at `place` has been measured."""
    column = covariance[place]
    after: Matrix = covariance - np.outer(column, column) / (column[place] + noise)
    return after


def _of_equal_weights(cells: Sequence[HostCell]) -> list[list[int]]:
    """The indices of cells that differ in their caches alone, the plainest caches first."""
    groups: dict[tuple[object, ...], list[int]] = {}
    for place, cell in enumerate(cells):
        groups.setdefault((*cell.key[2:], cell.model, cell.weights), []).append(place)
    return [
        sorted(places, key=lambda place: -_cache_bits(cells[place])) for places in groups.values()
    ]


def _cache_bits(cell: HostCell) -> float:
    return sum(GGML_TYPES[kind].bits_per_weight for kind in (cell.k_type, cell.v_type))


def _attention_share(cell: HostCell) -> float:
    """Multiply-adds of attention per byte that a step reads and weight that it multiplies."""
    return cell.k_products / sum(
        weights.read * weights.bits / 8 + cell.batch * weights.multiplied
        for weights in cell.weights
    )


class _Terms:
    """The step time of some cells as a function of independent standard normal parameters.

    The parameters are in four groups, each with the matrix that makes logarithms of factors of
    them: the processor's four constants, the kernels f, the caches g and h, and factors of whole
    models and backends.
    """

    def __init__(self, cells: Sequence[HostCell]) -> None:
        kernels = sorted(
            {
                (weights.type_name, weights.bits, cell.batch)
                for cell in cells
                for weights in cell.weights
            }
        )
        caches = sorted(
            {("K", cell.k_type) for cell in cells} | {("V", cell.v_type) for cell in cells}
        )
        kernel_place = {kernel: place for place, kernel in enumerate(kernels)}
        cache_place = {cache: place for place, cache in enumerate(caches)}
        self._layers = np.array([float(cell.layers) for cell in cells])
        self._read = np.zeros((len(cells), len(kernels)))
        self._multiplied = np.zeros_like(self._read)
        self._products = np.zeros((len(cells), len(caches)))
        for row, cell in enumerate(cells):
            for weights in cell.weights:
                place = kernel_place[weights.type_name, weights.bits, cell.batch]
                self._read[row, place] += weights.read * weights.bits / 8
                self._multiplied[row, place] += cell.batch * weights.multiplied
            self._products[row, cache_place["K", cell.k_type]] += cell.k_products
            self._products[row, cache_place["V", cell.v_type]] += cell.v_products
        cache_types = [(kind, GGML_TYPES[kind].bits_per_weight) for _, kind in caches]
        models, backends = (
            [getattr(cell, name) for cell in cells] for name in ("model", "backend")
        )
        groups = np.hstack(
            [
                _indicator(models, sorted(set(models)), _MODEL_SD),
                _indicator(backends, sorted(set(backends)), _BACKEND_SD),
                _mixture_deviations(cells),
            ]
        )
        self._factors = (
            _MACHINE_PRIOR,
            _factor(_kernel_covariance(kernels)),
            _factor(_CACHE_TYPE_SD**2 * _type_correlation(cache_types)),
            groups,
        )
        self.n_parameters = sum(factor.shape[1] for factor in self._factors)

    def log_seconds(self, parameters: Matrix) -> Matrix:
        """The logarithm of each cell's step time."""
        logarithms: Matrix = np.log(self._parts(parameters).total) + self._logarithms(parameters)[3]
        return logarithms

    def sensitivity(self, parameters: Matrix) -> Matrix:
        """The derivative of `log_seconds` by each parameter."""
        parts = self._parts(parameters)
        constants = np.stack(
            [
                parts.launch,
                parts.memory.sum(axis=1),
                parts.arithmetic.sum(axis=1),
                parts.attention.sum(axis=1),
            ],
            axis=1,
        )
        shares = (constants, parts.memory + parts.arithmetic, parts.attention)
        derivative: Matrix = np.hstack(
            [
                *(
                    share / parts.total[:, None] @ factor
                    for share, factor in zip(shares, self._factors[:3], strict=True)
                ),
                self._factors[3],
            ]
        )
        return derivative

    def _logarithms(self, parameters: Matrix) -> list[Matrix]:
        """The logarithms of the constants and of the factors, by group."""
        ends = np.cumsum([factor.shape[1] for factor in self._factors])[:-1]
        pieces = np.split(parameters, ends)
        return [factor @ piece for factor, piece in zip(self._factors, pieces, strict=True)]

    def _parts(self, parameters: Matrix) -> "_Seconds":
        constants, kernels, caches, _ = map(np.exp, self._logarithms(parameters))
        launch, memory, arithmetic, attention = constants
        return _Seconds(
            self._layers * (_LAUNCH_S * launch),
            self._read * (memory / _BANDWIDTH_BYTES_PER_S) * kernels,
            self._multiplied * (_ARITHMETIC_S * arithmetic) * kernels,
            self._products * (_ATTENTION_S * attention) * caches,
        )


class _Seconds(NamedTuple):
    """What a step of each cell spends, by kernel and by cache; before factors of whole models."""

    launch: Matrix
    memory: Matrix
    arithmetic: Matrix
    attention: Matrix

    @property
    def total(self) -> Matrix:
        """Seconds of each cell's step."""
        total: Matrix = (
            self.launch + (self.memory + self.arithmetic).sum(axis=1) + self.attention.sum(axis=1)
        )
        return total


@dataclass
class _Fit:
    """The most probable parameters given the runs, and the speeds of the cells with them."""

    runs: Sequence[HostRun]
    cells: Sequence[HostCell]
    _terms: _Terms = field(init=False)

    def __post_init__(self) -> None:
        self._terms = _Terms([*(run.cell for run in self.runs), *self.cells])
        count = len(self.runs)
        batches = np.array([float(run.cell.batch) for run in self.runs])
        speeds = np.array([run.tokens_per_s for run in self.runs])
        observed = np.log(batches / speeds)
        noise = np.array([math.hypot(run.sd, _CELL_SD) for run in self.runs])

        def residuals(parameters: Matrix) -> Matrix:
            seconds = self._terms.log_seconds(parameters)[:count]
            return np.concatenate([(seconds - observed) / noise, parameters])

        def jacobian(parameters: Matrix) -> Matrix:
            rows = self._terms.sensitivity(parameters)[:count]
            return np.vstack([rows / noise[:, None], np.eye(parameters.size)])

        from scipy.optimize import least_squares  # slow to load, and most commands fit nothing

        start = np.zeros(self._terms.n_parameters)
        self._parameters = least_squares(residuals, start, jac=jacobian, method="trf").x
        weighted = self._terms.sensitivity(self._parameters)[:count] / noise[:, None]
        self._covariance: Matrix = np.linalg.inv(np.eye(start.size) + weighted.T @ weighted)
        errors = residuals(self._parameters)[:count]
        leverage = np.einsum("ij,jk,ik->i", weighted, self._covariance, weighted)
        # A run's error when it is left out is error / (1 - leverage), and its standard deviation
        # then 1 / sqrt(1 - leverage) of the noise.
        squares = float((errors**2 / (1 - leverage)).sum())
        self._scale = math.sqrt((_PRIOR_FREEDOM + squares) / (_PRIOR_FREEDOM + count))
        self.reach = _reach(count)

    @cached_property
    def log_speeds(self) -> list[float]:
        """The logarithm of each cell's tokens/s."""
        seconds = self._terms.log_seconds(self._parameters)[len(self.runs) :]
        batches = np.array([float(cell.batch) for cell in self.cells])
        return [float(value) for value in np.log(batches) - seconds]

    @cached_property
    def sds(self) -> list[float]:
        """The standard deviation of each of `log_speeds`."""
        rows = self._terms.sensitivity(self._parameters)[len(self.runs) :]
        variance = np.einsum("ij,jk,ik->i", rows, self._covariance, rows)
        return [float(value) for value in self._scale * np.sqrt(variance + _CELL_SD**2)]


def _reach(freedom: int) -> float:
    """Half the interval in standard deviations, where `freedom` runs and the prior tell those."""
    from scipy.special import stdtrit  # as above

    return float(stdtrit(_PRIOR_FREEDOM + freedom, (1 + CONFIDENCE) / 2))


def _kernel_covariance(kernels: Sequence[tuple[str, float, int]]) -> Matrix:
    """The covariance of log f between (type, bits, batch size) and others."""
    types = _type_correlation([(name, bits) for name, bits, _ in kernels])
    batches = _batch_correlation([batch for *_, batch in kernels])
    covariance: Matrix = (
        _KERNEL_TYPE_SD**2 * types + _KERNEL_BATCH_SD**2 * batches + _KERNEL_SD**2 * types * batches
    )
    return covariance


def _mixture_deviations(cells: Sequence[HostCell]) -> Matrix:
    """Factors of each model's weights at a batch size: what the sum over their types misses."""
    served = [
        (cell.model, tuple((w.type_name, w.multiplied) for w in cell.weights), cell.batch)
        for cell in cells
    ]
    mixtures = sorted(set(served))
    weights = [mixture[:2] for mixture in mixtures]
    same = np.array([[float(one == other) for other in weights] for one in weights])
    batches = _batch_correlation([batch for *_, batch in mixtures])
    factor = _factor(_MIXTURE_SD**2 * same * batches)
    deviations: Matrix = factor[[mixtures.index(item) for item in served]]
    return deviations


def _batch_correlation(batches: Sequence[int]) -> Matrix:
    """How alike the costs of batch sizes are: nearness counts, and whether it is one row."""
    doublings = np.log2([float(batch) for batch in batches])
    correlation: Matrix = np.exp(-np.abs(doublings[:, None] - doublings[None, :]) / _BATCH_SCALE)
    several = doublings > 0
    correlation[several[:, None] != several[None, :]] *= _REGIME_SHARE
    return correlation


def _type_correlation(types: Sequence[tuple[str, float]]) -> Matrix:
    """How alike the costs of types (name, bits per weight) are: family and bits count."""
    bits = np.array([bits for _, bits in types])
    families = np.array([_family(name) for name, _ in types])
    names = np.array([name for name, _ in types])
    near = np.exp(-np.abs(bits[:, None] - bits[None, :]) / _BITS_SCALE)
    own_share = 1 - _FAMILY_SHARE - _ALL_SHARE
    correlation: Matrix = (
        _ALL_SHARE
        + _FAMILY_SHARE * near * (families[:, None] == families[None, :])
        + own_share * (names[:, None] == names[None, :])
    )
    return correlation


def _family(type_name: str) -> str:
    """Types that one style of kernel unpacks."""
    for prefix in ("gptq", "awq", "IQ", "TQ"):
        if type_name.startswith(prefix) and type_name != "IQ4_NL":
            return prefix
    if type_name.endswith("_K"):
        return "K"
    if type_name.endswith("FP4"):
        return "FP4"
    return "float" if type_name.startswith(("F", "BF")) else "blocks of 32"


def _factor(covariance: Matrix) -> Matrix:
    """The lower triangle L with L @ L.T == covariance."""
    factor = np.linalg.cholesky(covariance + 1e-9 * np.eye(len(covariance)))
    return np.asarray(factor, dtype=np.float64)


def _indicator(values: Sequence[str], names: Sequence[str], sd: float) -> Matrix:
    """The share of each name in each value, as deviations of `sd`; none with a single name."""
    # A factor that all cells share is already the machine's.
    names = names if len(names) > 1 else ()
    return sd * np.array([[float(value == name) for name in names] for value in values])
