"""Which variant of a model to run on a processor, from the processor's own benchmark records."""

import logging
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Final, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, NonNegativeFloat, PositiveFloat, PositiveInt

from quant_assets.artifacts.manifest import ArtifactManifest
from quant_assets.artifacts.store import ArtifactStore
from quant_assets.bench.artifact_finder import artifact_finder
from quant_assets.bench.quality import QualityResult, QualityStore, on_one_text
from quant_assets.bench.results import ResultStore
from quant_assets.bench.variants import Variant, load_settings, load_variants
from quant_assets.capacity.memory import Serving, compute_buffer_bytes, kv_cache_bytes
from quant_assets.errors import InputError
from quant_assets.models.inspection import ModelShape
from quant_assets.settings import Settings
from quant_assets.speed.host_cells import HostArtifact, StepLengths, host_cell, open_host_artifact
from quant_assets.speed.host_fit import HostCell, HostPrediction, HostRun, predict_host
from quant_assets.speed.host_records import (
    HostRecords,
    host_runs,
    records_of_host,
    usual_lengths,
)

_ON_ANOTHER_TEXT = "without a quality measured on the text of the other variants"
_LOG = logging.getLogger(__name__)

THIS_MACHINE: Final = "this-machine"

Objective = Literal["speed", "quality"]
OBJECTIVE: Final = "speed"
QualityBasis = Literal["measured", "baseline", "unmeasured"]


class HostQuestion(BaseModel):
    """A model to run on a processor, what counts most, and limits.

    `cpu` is the processor's name in benchmark records, or `this-machine`. Without a `context`, the
    lengths are those of most of the processor's runs. `min_tokens_per_s` applies to every sequence.
    `max_memory_gb` (10^9 bytes) limits weights, KV cache and compute buffers together. The quality
    loss is relative to the perplexity of F16; with a limit, a variant does not qualify whose loss is
    certainly over it (the lower bound of its 95% interval is), or has not been measured.
    """

    model_config = ConfigDict(frozen=True)

    model: str
    cpu: str = THIS_MACHINE
    objective: Objective = OBJECTIVE
    context: PositiveInt | None = None
    batch: PositiveInt = 1
    min_tokens_per_s: PositiveFloat | None = None
    max_quality_loss: NonNegativeFloat | None = None
    max_memory_gb: PositiveFloat | None = None
    limit: PositiveInt = Field(default=10, le=1000)


class HostOption(BaseModel):
    """One variant on the processor. Speeds are of all its sequences together, unless named otherwise.

    The interval of the speed is at 90 %, that of the quality loss at 95 %. `runs` of the processor are behind the speed: those of
    this very cell where `speed_basis` is measured, else those that the estimate was fitted to.
    """

    place: int
    variant: str
    format: str
    level: str
    cache_type_k: str
    cache_type_v: str
    decode_tokens_per_s: float
    decode_tokens_per_s_low: float
    decode_tokens_per_s_high: float
    decode_tokens_per_s_per_sequence: float
    speed_basis: Literal["measured", "estimated"]
    runs: int
    memory_gb: float
    quality_loss: float | None
    quality_loss_low: float | None
    quality_loss_high: float | None
    quality_basis: QualityBasis
    reason: str


class HostAnswer(BaseModel):
    """The variants that qualify, best first.

    `left_out` counts the variants that do not qualify, and `runs_left_out` the records of the
    processor that the speeds do not rest on, by reason.
    """

    question: HostQuestion
    cpu_name: str
    threads: int
    context: int
    batch: int
    runs: int
    suitable: int
    options: list[HostOption]
    left_out: dict[str, int]
    runs_left_out: dict[str, int]


class QualityLoss(NamedTuple):
    """A variant's loss with its 95% interval; None, None for records from before intervals."""

    loss: float
    low: float | None = None
    high: float | None = None

    @property
    def certain(self) -> float:
        """The loss that a limit is compared with."""
        return self.loss if self.low is None else self.low


class HostCandidate(NamedTuple):
    """A variant that could run: its decoding step at the lengths asked for, memory, quality loss.

    `unmeasured_because` says why `quality` is None.
    """

    variant: Variant
    cell: HostCell
    memory_gb: float
    quality: QualityLoss | None
    quality_basis: QualityBasis
    unmeasured_because: str = "without a measured quality"


class HostEvidence:
    """The variants, artifacts, records and quality results that answers about processors rest on."""

    def __init__(
        self,
        variants: Mapping[str, Variant],
        artifacts: ArtifactStore,
        results: ResultStore,
        quality: QualityStore,
    ) -> None:
        self._variants = variants
        self._artifacts = artifacts
        self._results = results
        self._quality = quality
        self._manifests = {item.job_id: item for item in artifacts.all() if item.status == "valid"}
        self._opened: dict[str, HostArtifact | None] = {}

    def models(self) -> list[str]:
        """The models with artifacts, by name."""
        return sorted({manifest.job.model_name for manifest in self._manifests.values()})

    def runs(self, cpu: str | None, threads: int) -> tuple[HostRecords, list[HostRun]]:
        """The records of a processor and its usable runs, see `records_of_host` for the arguments.

        Raises `InputError` for a processor without records, or whose records are all unusable.
        """
        host = records_of_host(self._results.records(), cpu, threads)
        runs = host_runs(host, self._variants, self.open_artifact)
        if not runs:
            raise _no_usable_runs(host)
        return host, runs

    def candidates(
        self, model: str, lengths: StepLengths
    ) -> tuple[list[HostCandidate], Counter[str]]:
        """The variants of `model` that could run, and the number of the others by reason.

        Raises `InputError` for a context beyond the model's own.
        """
        find = artifact_finder(self._artifacts, model)
        results = [result for result in self._quality.all() if result.model == model]
        on_any_text = {(result.variant, result.artifact_id) for result in results}
        located_ids = {
            (variant.name, located.artifact_id)
            for variant in self._variants.values()
            if (located := find(variant))
        }
        losses = on_one_text(results, located_ids)
        candidates = []
        left_out: Counter[str] = Counter()
        for variant in self._variants.values():
            located = find(variant)
            artifact = self.open_artifact(located.artifact_id) if located else None
            if located is None or artifact is None:
                left_out["without an artifact"] += 1
                continue
            _check_context(model, artifact.shape, lengths.context_tokens)
            try:
                memory_gb = _memory_gb(
                    artifact, variant, lengths, self._manifests[located.artifact_id]
                )
            except InputError:
                left_out["with a KV cache type that the model's heads do not allow"] += 1
                continue
            cell = host_cell(artifact, variant, lengths)
            quality = _quality_loss(losses.get((variant.name, located.artifact_id)))
            basis: QualityBasis = "unmeasured" if quality is None else "measured"
            if _is_baseline(variant):
                quality, basis = QualityLoss(0.0, 0.0, 0.0), "baseline"
            candidate = HostCandidate(variant, cell, memory_gb, quality, basis)
            if quality is None and (variant.name, located.artifact_id) in on_any_text:
                candidate = candidate._replace(unmeasured_because=_ON_ANOTHER_TEXT)
            candidates.append(candidate)
        return candidates, left_out

    def open_artifact(self, artifact_id: str) -> HostArtifact | None:
        """An artifact by its id; None if it is gone, or, with a warning, if it is damaged."""
        manifest = self._manifests.get(artifact_id)
        if manifest is None:
            return None
        if artifact_id not in self._opened:
            folder = self._artifacts.folder(artifact_id)
            is_file = manifest.job.target_format == "gguf"
            path = folder / manifest.files[0].name if is_file else folder
            try:
                self._opened[artifact_id] = open_host_artifact(manifest.job.model_name, path)
            except InputError as error:
                _LOG.warning("The artifact %s is ignored. %s", artifact_id, error)
                self._opened[artifact_id] = None
        return self._opened[artifact_id]


def recommend_for_host(question: HostQuestion, project: Settings) -> HostAnswer:
    """Answer from the records, artifacts and quality results of the data root.

    Raises `InputError` for a model without artifacts, a processor without usable records, or a
    context beyond the model's own.
    """
    evidence = HostEvidence(
        load_variants(project.variants_yaml),
        ArtifactStore(project.artifacts),
        ResultStore(project.results),
        QualityStore(project.results, project.cache),
    )
    if question.model not in evidence.models():
        raise _no_artifacts(question.model, evidence.models())
    host, runs = evidence.runs(
        None if question.cpu == THIS_MACHINE else question.cpu,
        load_settings(project.variants_yaml).effective_threads,
    )
    lengths = asked_lengths(question, runs)
    candidates, left_out = evidence.candidates(question.model, lengths)
    speeds = predict_host(runs, [candidate.cell for candidate in candidates])
    options, unsuitable = rank_for_host(question, candidates, speeds)
    return HostAnswer(
        question=question,
        cpu_name=host.cpu_name,
        threads=host.threads,
        context=lengths.context_tokens,
        batch=lengths.batch,
        runs=len(runs),
        suitable=len(options),
        options=options[: question.limit],
        left_out=dict((left_out + unsuitable).most_common()),
        runs_left_out=dict(host.left_out.most_common()),
    )


def asked_lengths(question: HostQuestion, runs: Sequence[HostRun]) -> StepLengths:
    """The lengths at which the question is answered.

    They are those of most of the runs that end at the question's context, so that measured cells
    answer it; with no such run, a sequence grows from nothing to its whole context, as in the
    serving grid.
    """
    context = question.context
    fitting = [
        run for run in runs if context in (None, run.cell.prompt_tokens + run.cell.generated_tokens)
    ]
    if fitting:
        return usual_lengths(fitting, question.batch)
    assert context is not None, "without a context, all runs fit"
    return StepLengths(question.batch, 0, context)


def rank_for_host(
    question: HostQuestion,
    candidates: Sequence[HostCandidate],
    speeds: Sequence[HostPrediction],
) -> tuple[list[HostOption], Counter[str]]:
    """The candidates that qualify, best first, and the number of the others by reason.

    `speeds` are those of the candidates, in their order. For speed, by expected decoding speed. For quality, by quality loss, those with an unmeasured
    one last, and equal ones by speed.
    """
    left_out: Counter[str] = Counter()
    kept: list[tuple[HostCandidate, HostPrediction]] = []
    for candidate, speed in zip(candidates, speeds, strict=True):
        reason = _reason_against(question, candidate, speed)
        if reason is None:
            kept.append((candidate, speed))
        else:
            left_out[reason] += 1

    def preference(item: tuple[HostCandidate, HostPrediction]) -> tuple[float, float, str]:
        candidate, speed = item
        loss = math.inf if candidate.quality is None else candidate.quality.loss
        first = loss if question.objective == "quality" else 0.0
        return first, -speed.tokens_per_s, candidate.variant.name

    kept.sort(key=preference)
    return [
        _option(place, len(kept), candidate, speed)
        for place, (candidate, speed) in enumerate(kept, start=1)
    ], left_out


def _reason_against(
    question: HostQuestion, candidate: HostCandidate, speed: HostPrediction
) -> str | None:
    per_sequence = speed.tokens_per_s / candidate.cell.batch
    if question.max_memory_gb is not None and candidate.memory_gb > question.max_memory_gb:
        return "over the limit on memory"
    if question.max_quality_loss is not None:
        if candidate.quality is None:
            return candidate.unmeasured_because
        if candidate.quality.certain > question.max_quality_loss:
            return "over the limit on quality loss"
    if question.min_tokens_per_s is not None and per_sequence < question.min_tokens_per_s:
        return "too slow"
    return None


def _is_baseline(variant: Variant) -> bool:
    """Whether losses are relative to this variant, as `int_variant_artifacts` has it."""
    caches = (variant.cache_type_k, variant.cache_type_v)
    return (variant.format, variant.level, *caches) == ("gguf", "F16", "f16", "f16")


def _memory_gb(
    artifact: HostArtifact, variant: Variant, lengths: StepLengths, manifest: ArtifactManifest
) -> float:
    serving = Serving(
        context=lengths.context_tokens,
        batch=lengths.batch,
        kv_type_k=variant.cache_type_k.upper(),
        kv_type_v=variant.cache_type_v.upper(),
    )
    tensor_bytes = round(manifest.bits_per_weight * manifest.n_parameters / 8)
    cache_bytes = kv_cache_bytes(artifact.shape, serving)
    return (tensor_bytes + cache_bytes + compute_buffer_bytes(artifact.shape, serving)) / 1e9


def _quality_loss(result: QualityResult | None) -> QualityLoss | None:
    ratio = result.measurement.perplexity_ratio if result else None
    if result is None or ratio is None:
        return None
    interval = result.measurement.perplexity_ratio_interval
    if interval is None:
        return QualityLoss(ratio - 1)
    return QualityLoss(ratio - 1, interval.low - 1, interval.high - 1)


def _option(
    place: int, suitable: int, candidate: HostCandidate, speed: HostPrediction
) -> HostOption:
    variant, batch = candidate.variant, candidate.cell.batch
    loss, low, high = candidate.quality or (None, None, None)
    quality = "quality not measured" if loss is None else f"quality loss {loss:+.1%}"
    if candidate.quality_basis == "measured" and low is not None and high is not None:
        quality += f" ({low:+.1%} to {high:+.1%})"
    runs = f"{speed.runs} run{'s' if speed.runs != 1 else ''}"
    basis = f"measured in {runs}" if speed.basis == "measured" else f"estimated from {runs}"
    return HostOption(
        place=place,
        variant=variant.name,
        format=variant.format,
        level=variant.level,
        cache_type_k=variant.cache_type_k,
        cache_type_v=variant.cache_type_v,
        decode_tokens_per_s=speed.tokens_per_s,
        decode_tokens_per_s_low=speed.low,
        decode_tokens_per_s_high=speed.high,
        decode_tokens_per_s_per_sequence=speed.tokens_per_s / batch,
        speed_basis=speed.basis,
        runs=speed.runs,
        memory_gb=candidate.memory_gb,
        quality_loss=loss,
        quality_loss_low=low,
        quality_loss_high=high,
        quality_basis=candidate.quality_basis,
        reason=(
            f"Number {place} of {suitable} suitable variants: {speed.tokens_per_s:,.1f} tokens/s "
            f"({speed.low:,.1f} to {speed.high:,.1f}), {basis} of this processor; {quality}; "
            f"{candidate.memory_gb:.2f} GB."
        ),
    )


def _check_context(model: str, shape: ModelShape, context: int) -> None:
    if shape.context_length is not None and context > shape.context_length:
        raise InputError(
            f"{model} cannot have a context of {context} tokens.",
            f"Its own limit is {shape.context_length} tokens.",
            "Choose less with --context.",
        )


def _no_artifacts(model: str, models: Sequence[str]) -> InputError:
    return InputError(
        f"There are no artifacts of a model {model!r}.",
        f"There are artifacts of {', '.join(models)}." if models else "There are no artifacts yet.",
        "Name one of these models, or add this one to the model list and materialize its artifacts.",
    )


def _no_usable_runs(host: HostRecords) -> InputError:
    return InputError(
        f"No benchmark record of {host.cpu_name!r} can be used.",
        "Left out were "
        + ", ".join(f"{number} {reason}" for reason, number in host.left_out.most_common())
        + ".",
        "Measure some variants with `quant-assets bench` while the machine does nothing else.",
    )
