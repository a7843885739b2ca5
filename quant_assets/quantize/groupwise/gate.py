"""The perplexity gate: an artifact must be close to its source, and better than plain rounding.

Perplexity is measured on one fixed text in llama.cpp's windows: of the artifact, of its source, and
of the source rounded to nearest with the same bits and group size. The last two are cached.
"""

import hashlib
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final

from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError

from quant_assets.artifacts.quality_gate import GATE_PERPLEXITY_RATIO, exceeds_gate
from quant_assets.formats.artifact_formats import RunnableFormat
from quant_assets.host.caches import remember
from quant_assets.host.devices import Device, available_physical_cores
from quant_assets.models.source import SourceModel
from quant_assets.processes.session import UNATTENDED, WorkerSession
from quant_assets.processes.supervisor import run_worker
from quant_assets.quantize.groupwise.job import WORKER_VARIABLES
from quant_assets.texts.evaluation import WINDOW_TOKENS, EvaluationText
from quant_assets.window_intervals import Interval, certainly_exceeds, ratio_interval

GATED_BITS: Final = 4
"""Fewer bits are not held to `GATE_PERPLEXITY_RATIO`."""
PERPLEXITY_RESOLUTION: Final = 1.0001
"""Ratios this close to 1 only reflect the order of 16-bit sums; at 8 bits GPTQ and rounding agree."""
NEARLY_LOSSLESS_RATIO: Final = 1.01
"""At 8 bits plain rounding is as good as anything, so being this close to the source passes too."""
DOUBTFUL_RATIO: Final = 2.0
"""Warn from 2x the source's perplexity: beating rounding no longer means usable."""
GATE_WINDOWS: Final = 8
_CACHE_FORM: Final = "with the losses of windows"
"""Part of the key of cached measurements; those from before `window_nll` are measured again."""


class Rounding(BaseModel):
    """Plain rounding to nearest."""

    model_config = ConfigDict(frozen=True)

    bits: int
    group_size: int
    sym: bool


class Checkpoint(BaseModel):
    """A checkpoint to measure, rounded to nearest first if `rounding` is given."""

    path: Path
    format: RunnableFormat
    rounding: Rounding | None = None


class CheckpointQualityJob(BaseModel):
    """Measure checkpoints on one text, one after another."""

    checkpoints: list[Checkpoint]
    text: Path
    context: int
    windows: int
    threads: int
    device: Device = "auto"


def _not_a_number(value: object) -> object:
    """JSON writes the perplexity of a model with infinite outputs as null."""
    return math.nan if value is None else value


_Number = Annotated[float, BeforeValidator(_not_a_number)]


class CheckpointQuality(BaseModel):
    """Perplexity with its standard error, and the artifact's continuation of "The".

    `window_nll`: mean negative log-likelihood per token of each window, in nats.
    """

    perplexity: _Number
    standard_error: _Number
    scored_tokens: int
    window_nll: list[_Number] | None = None
    generated_text: str | None


class CheckpointQualities(BaseModel):
    """The measurements, in the order of the checkpoints."""

    measured: list[CheckpointQuality]


class GateResult(BaseModel):
    """The gate's measurements; `rejection` is null for an artifact that passed.

    The intervals are those of the two ratios, at 95%, paired by window.
    """

    text: str
    scored_tokens: int
    perplexity: float
    source_perplexity: float
    rounding_perplexity: float
    standard_error: float | None = None
    source_standard_error: float | None = None
    rounding_standard_error: float | None = None
    to_source_interval: Interval | None = None
    to_rounding_interval: Interval | None = None
    generated_text: str | None
    rejection: str | None

    @property
    def ratio_to_source(self) -> float:
        """Perplexity over the source's."""
        return self.perplexity / self.source_perplexity

    @property
    def ratio_to_rounding(self) -> float:
        """Perplexity over that of plain rounding."""
        return self.perplexity / self.rounding_perplexity


def rejection(
    *,
    perplexity: float,
    source: float,
    rounding: float,
    bits: int,
    n_parameters: int,
    to_source: Interval | None = None,
    to_rounding: Interval | None = None,
) -> str | None:
    """Why an artifact is rejected, or None.

    At `GATED_BITS` and more it must pass the quality gate of all formats. Every artifact must be
    better than plain rounding as far as perplexity resolves it, or within `NEARLY_LOSSLESS_RATIO` of
    its source. A limit is exceeded when the whole interval of the ratio `to_source` or `to_rounding`
    is over it; without the interval, when the ratio is.
    """
    ratio = perplexity / source
    if certainly_exceeds(ratio, to_source, NEARLY_LOSSLESS_RATIO) and certainly_exceeds(
        perplexity / rounding, to_rounding, PERPLEXITY_RESOLUTION
    ):
        return (
            f"Its perplexity {perplexity:.3f} is not better than that of rounding to nearest, "
            f"{rounding:.3f} (source: {source:.3f})."
        )
    if bits >= GATED_BITS and exceeds_gate(ratio, n_parameters, to_source):
        reach = (
            f" ({100 * (to_source.low - 1):.1f}% to {100 * (to_source.high - 1):.1f}%)"
            if to_source
            else ""
        )
        return (
            f"Its perplexity {perplexity:.3f} is {100 * (ratio - 1):.1f}%{reach} over the source's "
            f"{source:.3f}; {100 * (GATE_PERPLEXITY_RATIO - 1):.0f}% are allowed."
        )
    return None


def quality_warning(ratio_to_source: float) -> str | None:
    """A warning about an artifact that passed but is of doubtful use, or None."""
    if ratio_to_source < DOUBTFUL_RATIO:
        return None
    return (
        f"Its perplexity is {ratio_to_source:.1f} times the source's. It is better than plain "
        "rounding, but still of doubtful use; use more bits, smaller groups or a larger model."
    )


def measure_checkpoints(
    checkpoints: list[Checkpoint],
    text: EvaluationText,
    *,
    threads: int,
    device: Device,
    windows: int,
    context: int,
    session: WorkerSession = UNATTENDED,
) -> list[CheckpointQuality]:
    """Load each checkpoint in a worker, generate with it, and measure its perplexity.

    Raises `InputError` for a text that is too short, `WorkerError` when a checkpoint does not load.
    """
    return run_worker(
        "groupwise.quality",
        CheckpointQualityJob(
            checkpoints=checkpoints, text=text.path, context=context, windows=windows,
            threads=threads, device=device,
        ),
        CheckpointQualities,
        environment="gptq",
        session=session.with_defaults(WORKER_VARIABLES),
    ).measured  # fmt: skip


@dataclass(frozen=True)
class GateCandidate:
    """The artifact to measure, and its source with the rounding that it must beat."""

    path: Path
    format: RunnableFormat
    rounding: Rounding
    source: SourceModel
    n_parameters: int


@dataclass(frozen=True)
class PerplexityGate:
    """Where and on what the gate measures; `cache` keeps the measurements of sources.

    `threads` None: all physical cores.
    """

    text: EvaluationText
    cache: Path
    threads: int | None = None
    device: Device = "auto"
    windows: int = GATE_WINDOWS
    context: int = WINDOW_TOKENS

    def check(self, candidate: GateCandidate, *, session: WorkerSession = UNATTENDED) -> GateResult:
        """Measure an artifact, its source and its rounded source, and apply the rules.

        Raises `InputError` for a text that is too short, `WorkerError` when the artifact does not
        load.
        """
        references = [
            Checkpoint(path=candidate.source.path, format="hf", rounding=rounding)
            for rounding in (None, candidate.rounding)
        ]
        cached = [self._cache_file(candidate.source, reference) for reference in references]
        known = [_read(path) for path in cached]
        missing = [number for number, found in enumerate(known) if found is None]
        own, *fresh = measure_checkpoints(
            [
                Checkpoint(path=candidate.path, format=candidate.format),
                *(references[number] for number in missing),
            ],
            self.text,
            threads=self.threads or available_physical_cores(),
            device=self.device,
            windows=self.windows,
            context=self.context,
            session=session,
        )
        for number, measured in zip(missing, fresh, strict=True):
            remember(cached[number], measured.model_dump_json(indent=2))
            known[number] = measured
        plain, rounded = known
        assert plain is not None and rounded is not None
        to_source, to_rounding = _interval(own, plain), _interval(own, rounded)
        return GateResult(
            text=self.text.name,
            scored_tokens=own.scored_tokens,
            perplexity=own.perplexity,
            source_perplexity=plain.perplexity,
            rounding_perplexity=rounded.perplexity,
            standard_error=own.standard_error,
            source_standard_error=plain.standard_error,
            rounding_standard_error=rounded.standard_error,
            to_source_interval=to_source,
            to_rounding_interval=to_rounding,
            generated_text=own.generated_text,
            rejection=rejection(
                perplexity=own.perplexity,
                source=plain.perplexity,
                rounding=rounded.perplexity,
                bits=candidate.rounding.bits,
                n_parameters=candidate.n_parameters,
                to_source=to_source,
                to_rounding=to_rounding,
            ),
        )

    def _cache_file(self, source: SourceModel, reference: Checkpoint) -> Path:
        parts = (
            source.identity, reference.rounding, self.text.sha256, self.windows, self.context,
            self.device, _CACHE_FORM,
        )  # fmt: skip
        key = hashlib.sha256(repr(parts).encode()).hexdigest()[:24]
        return self.cache / "reference_perplexity" / f"{key}.json"


def _interval(own: CheckpointQuality, other: CheckpointQuality) -> Interval | None:
    """The interval of the ratio of two perplexities on the same windows."""
    if own.window_nll is None or other.window_nll is None:
        return None
    return ratio_interval(own.window_nll, other.window_nll)


def _read(path: Path) -> CheckpointQuality | None:
    try:
        return CheckpointQuality.model_validate_json(path.read_bytes())
    except (OSError, ValidationError):
        return None
