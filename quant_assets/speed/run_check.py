"""Predicts the runs of published tables and says how true the predictions are."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Final, Literal

from pydantic import BaseModel, ConfigDict

from quant_assets.gpus.registry import GpuRegistry
from quant_assets.speed.checking import (
    PUBLISHED_LIMITS,
    PredictedRun,
    SpeedCheck,
    SpeedLimits,
    check_predictions,
)
from quant_assets.speed.fitting import cross_validated
from quant_assets.speed.model import SpeedModel
from quant_assets.speed.runs import MILD_SUSPECTS
from quant_assets.speed.selection import SelectedRun, Selection, Table
from quant_assets.speed.workload import Phase, Prediction, Workload

PredictedBy = Literal["shipped model", "cross-validation"]

WORST_SHOWN: Final = 10
_PIPELINED_SINCE: Final = 2024.2
"""Pipeline parallelism came with llama.cpp b2407."""
_FEW_BYTES: Final = 1.5e9
"""Below it, the launches of kernels take a large share of a decoding step."""


class _Row(BaseModel):
    model_config = ConfigDict(frozen=True)


class LeftOutRow(_Row):
    """A row that was not predicted, and why."""

    row_id: str
    reason: str
    detail: str


class RowPrediction(_Row):
    """The prediction of one row, in tokens/s, with its 90 % interval.

    `rests_on` is the closest scope with fitted runs. `model_shape`: the published shape that served;
    null stands for one of the same size. `error` is |predicted / measured - 1|.
    """

    row_id: str
    table: Table
    gpu: str
    gpu_count: int
    engine: str
    model: str
    model_shape: str | None
    level: str
    test: Phase
    batch: int
    mean_depth_tokens: float
    measured: float
    predicted: float
    low: float
    high: float
    rests_on: str
    error: float


class WorstPrediction(_Row):
    """One of the largest errors of the dense single-GPU runs, and its likely reason."""

    prediction: RowPrediction
    likely_reason: str


class RunCheck(_Row):
    """How true the predictions of the rows are, by table.

    `dense` has the limits: runs of dense models with llama.cpp's engines on one GPU. On several GPUs
    a model is split by layers: decoding is no faster than on one, and prefill passes its micro-batches
    through the GPUs as through a pipeline where the backend can.
    `other_engines` is by engine. `rows_of_seen_gpus` of the predicted rows are on GPUs whose runs the
    model was fitted to: they test the fit, not what it says of other GPUs. `generic_shapes` and
    `computed_sizes` count rows whose model or file size was not known.
    """

    predicted_by: PredictedBy
    rows: int
    predicted_rows: int
    rows_of_seen_gpus: int
    generic_shapes: int
    computed_sizes: int
    dense: SpeedCheck
    mixtures_of_experts: SpeedCheck
    several_gpus: SpeedCheck
    other_engines: dict[str, SpeedCheck]
    worst: list[WorstPrediction]
    left_out_by_reason: dict[str, int]
    left_out: list[LeftOutRow]
    predictions: list[RowPrediction]


def check_runs(
    selection: Selection, model: SpeedModel, limits: SpeedLimits = PUBLISHED_LIMITS
) -> RunCheck:
    """Predict every selected run with `model`, without looking at its speed.

    `limits` are those of dense models.
    """
    found = model.predict(
        [item.gpu for item in selection.selected],
        [item.work.workload for item in selection.selected],
    )
    return _check(selection, found, "shipped model", limits)


def cross_validate_runs(selection: Selection, registry: GpuRegistry, model: SpeedModel) -> RunCheck:
    """Predict each run by a model that has not seen its GPU.

    The runs that a fit learns from validate each other; `model` predicts those on several GPUs.
    """
    fitted = selection.fitted
    validated = dict(
        zip(
            (id(item) for item in fitted),
            cross_validated([item.observation for item in fitted], registry),
            strict=True,
        )
    )
    others = [item for item in selection.selected if id(item) not in validated]
    shipped = model.predict([item.gpu for item in others], [item.work.workload for item in others])
    validated |= dict(zip((id(item) for item in others), shipped, strict=True))
    return check_cross_validated(selection, [validated[id(item)] for item in selection.selected])


def check_cross_validated(
    selection: Selection, predictions: Sequence[Prediction | None]
) -> RunCheck:
    """How true the predictions of the selected runs are, each made without runs of its GPU."""
    return _check(selection, predictions, "cross-validation", PUBLISHED_LIMITS)


def layer_split_speedup(workload: Workload, gpus: int) -> float:
    """How many times faster `gpus` GPUs prefill a model split by layers than one of them; 1 decoding.

    k micro-batches pass n stages in k + n - 1 steps of 1 / n of the time each: k n / (k + n - 1).
    llama.cpp does so with CUDA and HIP since March 2024; else the GPUs work one after another.
    """
    year = workload.engine_year
    if (
        workload.phase == "decode"
        or workload.backend not in ("CUDA", "HIP")
        or (year is not None and year < _PIPELINED_SINCE)
    ):
        return 1.0
    passes = -(-workload.tokens // workload.tokens_per_pass)
    return passes * gpus / (passes + gpus - 1)


def _split(item: SelectedRun, made: Prediction | None) -> Prediction | None:
    if made is None or item.table != "several_gpus":
        return made
    factor = layer_split_speedup(item.work.workload, item.run.gpu_count)
    return replace(
        made,
        tokens_per_s=made.tokens_per_s * factor,
        low=made.low * factor,
        high=made.high * factor,
    )


def _check(
    selection: Selection,
    found: Sequence[Prediction | None],
    predicted_by: PredictedBy,
    limits: SpeedLimits,
) -> RunCheck:
    pairs = [
        (item, _split(item, made)) for item, made in zip(selection.selected, found, strict=True)
    ]
    rows = [_row(item, made) for item, made in pairs if made is not None]
    left_out = [
        LeftOutRow(row_id=item.row_id, reason=item.reason, detail=item.detail)
        for item in selection.left_out
    ] + [
        LeftOutRow(
            row_id=item.run.row_id, reason="gpu_without_figures", detail=item.gpu.canonical_name
        )
        for item, made in pairs
        if made is None
    ]
    engines = sorted(
        {item.work.workload.engine for item, _ in pairs if item.table == "other_engines"}
    )
    none = SpeedLimits()
    return RunCheck(
        predicted_by=predicted_by,
        rows=len(selection.selected) + len(selection.left_out),
        predicted_rows=len(rows),
        rows_of_seen_gpus=sum(row.rests_on == "this GPU" for row in rows),
        generic_shapes=sum(row.model_shape is None for row in rows),
        computed_sizes=sum(item.work.computed_size for item, made in pairs if made is not None),
        dense=check_predictions(_of(pairs, "dense"), limits),
        mixtures_of_experts=check_predictions(_of(pairs, "mixtures_of_experts"), none),
        several_gpus=check_predictions(_of(pairs, "several_gpus"), none),
        other_engines={
            engine: check_predictions(
                (run for run in _of(pairs, "other_engines") if run.workload.engine == engine),
                none,
            )
            for engine in engines
        },
        worst=_worst(pairs),
        left_out_by_reason=_by_reason(left_out),
        left_out=left_out,
        predictions=rows,
    )


def _by_reason(left_out: Iterable[LeftOutRow]) -> dict[str, int]:
    """The number of rows by reason, the most frequent first."""
    return dict(Counter(row.reason for row in left_out).most_common())


_Pairs = Sequence[tuple[SelectedRun, Prediction | None]]


def _of(pairs: _Pairs, table: Table) -> Iterable[PredictedRun]:
    return [
        PredictedRun(
            row_id=item.run.row_id,
            gpu=item.gpu.canonical_name,
            workload=item.work.workload,
            measured=item.run.tokens_per_s,
            prediction=made,
            level=item.run.level,
            depth_tokens=item.work.depth_tokens,
        )
        for item, made in pairs
        if item.table == table
    ]


def _row(item: SelectedRun, made: Prediction) -> RowPrediction:
    run, work = item.run, item.work
    return RowPrediction(
        row_id=run.row_id,
        table=item.table,
        gpu=item.gpu.canonical_name,
        gpu_count=run.gpu_count,
        engine=work.workload.engine,
        model=run.model,
        model_shape=work.model,
        level=run.level,
        test=run.test,
        batch=run.batch,
        mean_depth_tokens=work.depth_tokens,
        measured=run.tokens_per_s,
        predicted=made.tokens_per_s,
        low=made.low,
        high=made.high,
        rests_on=made.rests_on,
        error=abs(made.tokens_per_s / run.tokens_per_s - 1),
    )


def _worst(pairs: _Pairs) -> list[WorstPrediction]:
    """The largest errors by ratio, so that too slow and too fast weigh alike."""
    dense = [(item, made) for item, made in pairs if item.table == "dense" and made is not None]
    factors = {
        item.run.row_id: max(ratio, 1 / ratio)
        for item, made in dense
        if (ratio := made.tokens_per_s / item.run.tokens_per_s) > 0
    }
    dense.sort(key=lambda pair: -factors.get(pair[0].run.row_id, 0.0))
    typical = _typical_ratios(dense)
    return [
        WorstPrediction(
            prediction=_row(item, made), likely_reason=_likely_reason(item, made, typical)
        )
        for item, made in dense[:WORST_SHOWN]
    ]


def _typical_ratios(
    dense: Sequence[tuple[SelectedRun, Prediction]],
) -> Mapping[tuple[str, Phase], float]:
    """The median of measured / predicted by source and phase."""
    ratios: dict[tuple[str, Phase], list[float]] = {}
    for item, made in dense:
        key = (item.run.source_url or "", item.run.test)
        ratios.setdefault(key, []).append(item.run.tokens_per_s / made.tokens_per_s)
    return {key: sorted(values)[len(values) // 2] for key, values in ratios.items()}


def _likely_reason(
    item: SelectedRun, made: Prediction, typical: Mapping[tuple[str, Phase], float]
) -> str:
    """What is unusual about a run, the weightiest first; at most two things."""
    run, work = item.run, item.work.workload
    ratio = run.tokens_per_s / made.tokens_per_s
    source = typical[run.source_url or "", run.test]
    found = []
    if abs(source - 1) > 0.25 and (source - 1) * (ratio - 1) > 0:
        pace = "slower" if source < 1 else "faster"
        found.append(f"its source's runs are all {pace} ({source:.2f} x predicted)")
    if item.work.model is None:
        found.append("the model's shape is not known; one of its size served")
    if run.measure == "community":
        found.append("a user's measurement; lengths, clocks and other load are not stated")
    if run.measure == "workload_mean":
        found.append("a mean over prompts and answers of many lengths")
    if run.measure == "ubatch":
        found.append(f"{work.tokens_per_pass} tokens per pass, where kernels change")
    if set(run.suspect) & MILD_SUSPECTS:
        found.append("the source does not say which variant of the card it was")
    if made.rests_on in ("its maker", "all GPUs"):
        found.append(f"no run of its architecture was fitted ({made.rests_on} served)")
    if run.test == "decode" and work.weight_bytes < _FEW_BYTES:
        found.append("a small model, whose steps are mostly launches of kernels")
    if run.test == "decode" and run.batch > 1:
        found.append(f"{run.batch} sequences at once")
    if run.flash_attention is None and item.work.depth_tokens >= 4096:
        found.append("flash attention is not stated, and the context is long")
    if work.engine_year is not None and work.engine_year < 2024.5:
        found.append(f"an old build ({work.engine_year:.1f})")
    if not found:
        pace = "slower" if ratio < 1 else "faster"
        found.append(f"{pace} than runs of its kind, for reasons that the row does not tell")
    return "; ".join(found[:2])
