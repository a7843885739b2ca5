"""The speed model: what a GPU is expected to do with a workload, and how far to trust it.

`data/speed_model.yaml` holds the fit that ships; `quant-assets speed fit` makes another one.
"""

import datetime
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Final, Literal, NamedTuple

import numpy as np
import pandas as pd
import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from quant_assets.atomic_files import atomic_path
from quant_assets.errors import InputError
from quant_assets.gpus.registry import Gpu, GpuRegistry, load_registry
from quant_assets.settings import get_settings
from quant_assets.speed.pass_time import (
    FACTORS,
    REGIMES,
    Cases,
    Floats,
    PassKind,
    Regime,
    cases,
    is_predictable,
    log_seconds,
    pass_kind,
    regime_of,
    rows_of,
    slopes,
)
from quant_assets.speed.workload import GpuBackend, Observation, Prediction, Workload

Scope = Literal["this GPU", "its architecture", "its maker", "all GPUs"]
SCOPES: Final[tuple[Scope, ...]] = ("this GPU", "its architecture", "its maker", "all GPUs")

BACKEND_OF_VENDOR: Final[dict[str, GpuBackend]] = {
    "NVIDIA": "CUDA",
    "AMD": "HIP",
    "Intel": "SYCL",
    "Apple": "Metal",
}
"""The backend that llama.cpp's users build for each vendor's GPUs."""

LEAST_RUNS_OF_A_GPU: Final = 3
"""With fewer, a prediction rests on the architecture."""
_OWN_NOISE: Final = 0.03
# How alike the errors of two runs on one GPU are: in any case, and more for one weight type and
# for one batch size.
_ALIKE: Final = 0.6
_SAME_TYPE: Final = 0.2
_SAME_BATCH: Final = 0.2


class Factor(BaseModel):
    """A fitted factor: `value` times e^deviation for each key; deviations by group, then key.

    Every deviation has its standard deviation after the fit, `sd` is that of the logarithm of
    `value`. Keys that are missing deviate by 0, with the spread of their group before the fit.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    value: float = Field(gt=0)
    sd: float = Field(ge=0)
    deviations: dict[str, dict[str, tuple[float, float]]] = {}


class Residuals(BaseModel):
    """How far the cross-validated runs of one scope lie from their predictions.

    `low` and `high` are the 5 % and 95 % quantiles of log(measured / predicted) in units of
    `Calibration.spread`. `median_error` is the median of |predicted / measured - 1|.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    low: float
    high: float
    runs: int
    gpus: int
    median_error: float


class Calibration(BaseModel):
    """What cross-validation says about the standard deviations that a fit claims.

    The spread that errors had is sqrt(floor^2 + (share x claimed)^2), of logarithms.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    floor: float = Field(gt=0)
    share: float = Field(ge=0)
    scopes: dict[Scope, Residuals] = {}

    def spread(self, claimed: Floats) -> Floats:
        """The spread of errors where a fit claims the standard deviation `claimed`."""
        spread: Floats = np.hypot(self.floor, self.share * claimed)
        return spread

    def prediction(self, tokens_per_s: float, spread: float, scope: Scope, runs: int) -> Prediction:
        """A prediction that rests on `scope`, with its 90 % interval."""
        residuals = self.scopes[scope]
        return Prediction(
            tokens_per_s=tokens_per_s,
            low=tokens_per_s * float(np.exp(residuals.low * spread)),
            high=tokens_per_s * float(np.exp(residuals.high * spread)),
            rests_on=scope,
            runs=runs,
        )


class FittedRegime(BaseModel):
    """One regime's factors, how its errors spread, and the number of runs that it was fitted to."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    factors: dict[str, Factor]
    noise: float = Field(gt=0)
    calibrations: dict[PassKind, Calibration] = {}
    runs_by_gpu: dict[str, int]
    runs_by_architecture: dict[str, int]
    runs_by_maker: dict[str, int]

    def logs(self, regime: Regime, columns: Cases) -> tuple[dict[str, Floats], Floats]:
        """Logarithms of the factors, and the variance of log(seconds)."""
        found: dict[str, Floats] = {}
        variances: dict[str, Floats] = {}
        codes = {group: pd.factorize(np.array(keys)) for group, keys in columns.keys.items()}
        for name, prior in FACTORS[regime].items():
            factor = self.factors[name]
            values = np.full(len(columns), np.log(factor.value))
            variance = np.full(len(columns), factor.sd**2)
            for group, spread in prior.groups.items():
                known = factor.deviations.get(group, {})
                code, keys = codes[group]
                pairs = np.array([known.get(str(key), (0.0, spread)) for key in keys])
                values += pairs[code, 0]
                variance += pairs[code, 1] ** 2
            found[name], variances[name] = values, variance
        total = np.full(len(columns), self.noise**2)
        for name, slope in slopes(regime, columns, found).items():
            total += slope**2 * variances[name]
        return found, total

    def scope(self, gpu: Gpu) -> tuple[Scope, int]:
        """The closest scope with runs, and their number."""
        runs = self.runs_by_gpu.get(gpu.canonical_name, 0)
        if runs >= LEAST_RUNS_OF_A_GPU:
            return "this GPU", runs
        if (runs := self.runs_by_architecture.get(gpu.architecture, 0)) > 0:
            return "its architecture", runs
        if (runs := self.runs_by_maker.get(gpu.vendor, 0)) > 0:
            return "its maker", runs
        return "all GPUs", sum(self.runs_by_maker.values())


class _OwnRun(NamedTuple):
    """A measurement of a user: its log(measured / predicted) and the spread expected of that."""

    gpu: str
    workload: Workload
    error: float
    spread: float


class _OwnErrors(NamedTuple):
    """The errors of a user's runs in one place, and the inverse of their covariance."""

    runs: tuple[_OwnRun, ...]
    spreads: Floats
    errors: Floats
    inverse: Floats

    def conditioned(self, workload: Workload, spread: float) -> tuple[float, float]:
        """The mean of log(measured / predicted) at `workload`, and what remains of its `spread`.

        Two errors share what the better known of them can vary: a machine that is 30 % slow with one
        sequence says that it is, and little about where batches are uncertain by half.
        """
        here = _alikeness(workload, self.runs) * np.minimum(self.spreads, spread) ** 2
        gain = here @ self.inverse
        remaining = max(spread**2 - float(gain @ here), _OWN_NOISE**2) ** 0.5
        return float(gain @ self.errors), remaining


class _Forecast(NamedTuple):
    """Tokens/s, the standard deviation of their logarithm, and the errors of own runs there."""

    tokens_per_s: float
    sd: float
    own: _OwnErrors | None


class SpeedModel(BaseModel):
    """Fitted parameters and residual quantiles; `load_speed_model` reads the ones that ship."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    fitted_on: datetime.date
    runs: int
    gpus: int
    sources: tuple[str, ...] = ()
    regimes: dict[Regime, FittedRegime]
    own: tuple[_OwnRun, ...] = Field(default=(), exclude=True)

    def predict(
        self, gpus: Sequence[Gpu], workloads: Sequence[Workload]
    ) -> list[Prediction | None]:
        """The prediction of each pair (equally long lists); None where a GPU lacks a figure."""
        found: list[Prediction | None] = [None] * len(gpus)
        own = self._own_by_place()
        for regime in REGIMES:
            rows = rows_of(regime, gpus, workloads)
            if not rows:
                continue
            chosen, works = [gpus[row] for row in rows], [workloads[row] for row in rows]
            speeds, sds = self._speeds(regime, chosen, works)
            for gpu, work, row, speed, sd in zip(chosen, works, rows, speeds, sds, strict=True):
                errors = own.get(_place(gpu.canonical_name, work)) if own else None
                forecast = _Forecast(float(speed), float(sd), errors)
                found[row] = self._prediction(regime, gpu, work, forecast)
        return found

    def adapted(
        self, own: Sequence[Observation], registry: GpuRegistry | None = None
    ) -> "SpeedModel":
        """The model with own measurements taking precedence on their GPU and backend.

        Errors of runs on one GPU are alike, so each own run corrects the others (a Gaussian
        process over the errors) and shrinks their interval. Runs on GPUs that are not in the
        registry, or whose figures it lacks, are left out.
        """
        known = registry or load_registry()
        kept = [
            item
            for item in own
            if (gpu := known.by_name.get(item.gpu)) is not None and is_predictable(gpu)
        ]
        runs: list[_OwnRun] = []
        for regime in REGIMES:
            chosen = [item for item in kept if regime_of(item.workload) == regime]
            if not chosen:
                continue
            gpus = [known.by_name[item.gpu] for item in chosen]
            speeds, sds = self._speeds(regime, gpus, [item.workload for item in chosen])
            for item, speed, sd in zip(chosen, speeds, sds, strict=True):
                calibration = self.regimes[regime].calibrations[pass_kind(item.workload)]
                runs.append(
                    _OwnRun(
                        gpu=item.gpu,
                        workload=item.workload,
                        error=float(np.log(item.tokens_per_s / speed)),
                        spread=float(calibration.spread(sd)),
                    )
                )
        return self.model_copy(update={"own": tuple(runs)})

    def _speeds(
        self, regime: Regime, gpus: Sequence[Gpu], workloads: Sequence[Workload]
    ) -> tuple[Floats, Floats]:
        """Tokens/s, and the standard deviation of their logarithm."""
        columns = cases(gpus, workloads)
        logs, variance = self.regimes[regime].logs(regime, columns)
        speeds: Floats = columns.figures["tokens"] / np.exp(log_seconds(regime, columns, logs))
        return speeds, np.sqrt(variance)

    def _own_by_place(self) -> dict[tuple[str, Regime, GpuBackend, str], "_OwnErrors"]:
        """The errors of own runs by GPU, regime, backend and engine."""
        found: dict[tuple[str, Regime, GpuBackend, str], list[_OwnRun]] = {}
        for run in self.own:
            found.setdefault(_place(run.gpu, run.workload), []).append(run)
        return {place: _own_errors(runs) for place, runs in found.items()}

    def _prediction(
        self, regime: Regime, gpu: Gpu, workload: Workload, forecast: _Forecast
    ) -> Prediction:
        speed, sd, own = forecast
        fitted = self.regimes[regime]
        scope, runs = fitted.scope(gpu)
        calibration = fitted.calibrations[pass_kind(workload)]
        spread = float(calibration.spread(np.array(sd)))
        if own is not None:
            shift, spread = own.conditioned(workload, spread)
            speed *= float(np.exp(shift))
            scope, runs = "this GPU", len(own.runs)
        return calibration.prediction(speed, spread, scope, runs)

    def save(self, path: Path) -> None:
        """Write the model as YAML; a reader sees the old file or the new one."""
        content = self.model_dump(mode="json")
        with atomic_path(path) as partial:
            partial.write_text(
                "# Made by `quant-assets speed fit`. Its meaning: quant_assets/speed/model.py.\n"
                + yaml.safe_dump(content, sort_keys=False, width=120, default_flow_style=None),
                encoding="utf-8",
            )


def _place(gpu: str, workload: Workload) -> tuple[str, Regime, GpuBackend, str]:
    return gpu, regime_of(workload), workload.backend, workload.engine


def _own_errors(runs: Sequence[_OwnRun]) -> _OwnErrors:
    spreads = np.array([run.spread for run in runs])
    covariance = np.array([_alikeness(run.workload, runs) for run in runs])
    covariance *= np.minimum.outer(spreads, spreads) ** 2
    inverse = np.asarray(
        np.linalg.inv(covariance + _OWN_NOISE**2 * np.eye(len(runs))), dtype=np.float64
    )
    return _OwnErrors(tuple(runs), spreads, np.array([run.error for run in runs]), inverse)


def _alikeness(workload: Workload, runs: Sequence[_OwnRun]) -> Floats:
    return np.array(
        [
            _ALIKE
            + _SAME_TYPE * (run.workload.weight_type == workload.weight_type)
            + _SAME_BATCH * (run.workload.tokens_per_pass == workload.tokens_per_pass)
            for run in runs
        ]
    )


def load_speed_model(path: Path | None = None) -> SpeedModel:
    """The model in `path` (default: `speed_model.yaml` in the data folder); cached by mtime.

    Raises `InputError` for a missing or damaged file.
    """
    file = (path or get_settings().data / "speed_model.yaml").resolve()
    try:
        return _load(file, file.stat().st_mtime_ns)
    except (OSError, yaml.YAMLError, ValidationError) as error:
        raise InputError(
            f"The speed model {file} cannot be used.",
            f"{error}.",
            "Restore the file, or make another one with `quant-assets speed fit`.",
        ) from error


@lru_cache(maxsize=4)
def _load(file: Path, modified_ns: int) -> SpeedModel:  # noqa: ARG001, part of the cache's key
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    return SpeedModel.model_validate(yaml.load(file.read_bytes(), loader))  # noqa: S506
