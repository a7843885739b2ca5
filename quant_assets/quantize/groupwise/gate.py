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

GATED_BITS: Final = 4
"""Fewer bits are not held to `GATE_PERPLEXITY_RATIO`."""
PERPLEXITY_RESOLUTION: Final = 1.0001
"""Ratios this close to 1 only reflect the order of 16-bit sums; at 8 bits GPTQ and rounding agree."""
NEARLY_LOSSLESS_RATIO: Final = 1.01
"""At 8 bits plain rounding is as good as anything, so being this close to the source passes too."""
DOUBTFUL_RATIO: Final = 2.0
"""Warn from 2x the source's perplexity: beating rounding no longer means usable."""
GATE_WINDOWS: Final = 8


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


class CheckpointQuality(BaseModel):
    """Perplexity with its standard error, and the artifact's continuation of "The"."""

    perplexity: Annotated[float, BeforeValidator(_not_a_number)]
    standard_error: Annotated[float, BeforeValidator(_not_a_number)]
    scored_tokens: int
    generated_text: str | None


class CheckpointQualities(BaseModel):
    """The measurements, in the order of the checkpoints."""

    measured: list[CheckpointQuality]


class GateResult(BaseModel):
    """The gate's measurements; `rejection` is null for an artifact that passed."""

    text: str
    scored_tokens: int
    perplexity: float
    source_perplexity: float
    rounding_perplexity: float
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
    *, perplexity: float, source: float, rounding: float, bits: int, n_parameters: int
) -> str | None:
    """Why an artifact is rejected, or None.

    At `GATED_BITS` and more it must pass the quality gate of all formats. Every artifact must be
    better than plain rounding as far as perplexity resolves it, or within `NEARLY_LOSSLESS_RATIO` of
    its source.
    """
    ratio = perplexity / source
    # NaN compares false with everything, so the condition tests for the good case.
    if not (ratio <= NEARLY_LOSSLESS_RATIO or perplexity <= rounding * PERPLEXITY_RESOLUTION):
        return (
            f"Its perplexity {perplexity:.3f} is not better than that of rounding to nearest, "
            f"{rounding:.3f} (source: {source:.3f})."
        )
    if bits >= GATED_BITS and exceeds_gate(ratio, n_parameters):
        return (
            f"Its perplexity {perplexity:.3f} is {100 * (ratio - 1):.1f}% over the source's "
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
        return GateResult(
            text=self.text.name,
            scored_tokens=own.scored_tokens,
            perplexity=own.perplexity,
            source_perplexity=plain.perplexity,
            rounding_perplexity=rounded.perplexity,
            generated_text=own.generated_text,
            rejection=rejection(
                perplexity=own.perplexity,
                source=plain.perplexity,
                rounding=rounded.perplexity,
                bits=candidate.rounding.bits,
                n_parameters=candidate.n_parameters,
            ),
        )

    def _cache_file(self, source: SourceModel, reference: Checkpoint) -> Path:
        parts = (
            source.identity, reference.rounding, self.text.sha256, self.windows, self.context,
            self.device,
        )  # fmt: skip
        key = hashlib.sha256(repr(parts).encode()).hexdigest()[:24]
        return self.cache / "reference_perplexity" / f"{key}.json"


def _read(path: Path) -> CheckpointQuality | None:
    try:
        return CheckpointQuality.model_validate_json(path.read_bytes())
    except (OSError, ValidationError):
        return None
