"""The gate: an artifact must be close to its source, and better than plain rounding.

Perplexity is measured on one fixed text, by llama.cpp's windows, of the artifact, of its source, and
of the source rounded to nearest at the same bits and group size. The last two are kept in the cache.
"""

import hashlib
import math
from pathlib import Path
from typing import Annotated, Final

from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError

from quant_assets.formats.artifact_formats import RunnableFormat
from quant_assets.host.caches import remember
from quant_assets.host.devices import Device
from quant_assets.models.source import SourceModel
from quant_assets.processes.session import UNATTENDED, WorkerSession
from quant_assets.processes.supervisor import run_worker
from quant_assets.texts.evaluation import EvaluationText

GATED_PARAMETERS: Final = 1_000_000_000
GATE_RATIO: Final = 1.05
"""A model of `GATED_PARAMETERS` and up in 4 bits or more: at most this over its source."""
NEARLY_LOSSLESS_RATIO: Final = 1.01
"""At 8 bits rounding is as good as anything; being this close to the source passes as well."""
DOUBTFUL_RATIO: Final = 2.0
"""From twice the source's perplexity on a warning is given: better than rounding is not good then."""
DEFAULT_WINDOWS: Final = 8
DEFAULT_CONTEXT: Final = 512
_WORKER_ENV: Final = {"GPTQMODEL_CPU_WORKERS": "2", "OMP_WAIT_POLICY": "PASSIVE"}


class Rounding(BaseModel):
    """Plain rounding to nearest."""

    model_config = ConfigDict(frozen=True)

    bits: int
    group_size: int
    sym: bool


class Checkpoint(BaseModel):
    """A checkpoint to measure, rounded first where `rounding` says how."""

    path: Path
    format: RunnableFormat
    rounding: Rounding | None = None


class CheckpointQualityJob(BaseModel):
    """Measure checkpoints on one text, one after the other."""

    checkpoints: list[Checkpoint]
    text: Path
    context: int
    windows: int
    threads: int
    device: Device = "auto"


def _not_a_number(value: object) -> object:
    """JSON has no word for the perplexity of a model that answers with infinities."""
    return math.nan if value is None else value


class CheckpointQuality(BaseModel):
    """Perplexity with its standard error, and how an artifact goes on after "The"."""

    perplexity: Annotated[float, BeforeValidator(_not_a_number)]
    standard_error: Annotated[float, BeforeValidator(_not_a_number)]
    scored_tokens: int
    generated_text: str | None


class CheckpointQualities(BaseModel):
    """The answers, in the order of the checkpoints."""

    measured: list[CheckpointQuality]


class Verdict(BaseModel):
    """What the gate saw; `rejection` is null for an artifact that passed."""

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

    Models of `GATED_PARAMETERS` and up at 4 bits or more must be within `GATE_RATIO` of their
    source. Every artifact must be better than rounding, or within `NEARLY_LOSSLESS_RATIO`.
    """
    ratio = perplexity / source
    # A perplexity that is not a number compares false with everything, so the good case is asked.
    if not (ratio <= NEARLY_LOSSLESS_RATIO or perplexity < rounding):
        return (
            f"Its perplexity {perplexity:.3f} is not better than that of rounding to nearest, "
            f"{rounding:.3f} (source: {source:.3f})."
        )
    if n_parameters >= GATED_PARAMETERS and bits >= 4 and not ratio <= GATE_RATIO:
        return (
            f"Its perplexity {perplexity:.3f} is {100 * (ratio - 1):.1f}% over the source's "
            f"{source:.3f}; {100 * (GATE_RATIO - 1):.0f}% are allowed."
        )
    return None


def caution(ratio_to_source: float) -> str | None:
    """What to say of an artifact that passed and is of doubtful use all the same, or None."""
    if ratio_to_source < DOUBTFUL_RATIO:
        return None
    return (
        f"Its perplexity is {ratio_to_source:.1f} times the source's. It is better than plain "
        "rounding, and still of doubtful use; take more bits, smaller groups or a larger model."
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
    """Load each checkpoint in a worker, let it generate, and measure its perplexity.

    Raises `InputError` for a text that is too short, `WorkerError` when one does not load.
    """
    return run_worker(
        "checkpoint.quality",
        CheckpointQualityJob(
            checkpoints=checkpoints, text=text.path, context=context, windows=windows,
            threads=threads, device=device,
        ),
        CheckpointQualities,
        environment="gptq",
        session=session.with_defaults(_WORKER_ENV),
    ).measured  # fmt: skip


def judge(
    artifact: Path,
    artifact_format: RunnableFormat,
    rounding: Rounding,
    source: SourceModel,
    n_parameters: int,
    text: EvaluationText,
    cache: Path,
    *,
    threads: int,
    device: Device = "auto",
    windows: int = DEFAULT_WINDOWS,
    context: int = DEFAULT_CONTEXT,
    session: WorkerSession = UNATTENDED,
) -> Verdict:
    """Measure an artifact, its source and its rounded source, and judge.

    Raises `InputError` for a text that is too short, `WorkerError` when the artifact does not load.
    """

    references = [
        Checkpoint(path=source.path, format="hf", rounding=how) for how in (None, rounding)
    ]
    kept = [
        cache
        / "reference_perplexity"
        / f"{_key(source, reference, text, windows, context, device)}.json"
        for reference in references
    ]
    known = [_read(path) for path in kept]
    missing = [number for number, found in enumerate(known) if found is None]
    own, *fresh = measure_checkpoints(
        [
            Checkpoint(path=artifact, format=artifact_format),
            *(references[number] for number in missing),
        ],
        text,
        threads=threads,
        device=device,
        windows=windows,
        context=context,
        session=session,
    )
    for number, measured in zip(missing, fresh, strict=True):
        remember(kept[number], measured.model_dump_json(indent=2))
        known[number] = measured
    plain, rounded = known
    assert plain is not None and rounded is not None
    return Verdict(
        text=text.name,
        scored_tokens=own.scored_tokens,
        perplexity=own.perplexity,
        source_perplexity=plain.perplexity,
        rounding_perplexity=rounded.perplexity,
        generated_text=own.generated_text,
        rejection=rejection(
            perplexity=own.perplexity,
            source=plain.perplexity,
            rounding=rounded.perplexity,
            bits=rounding.bits,
            n_parameters=n_parameters,
        ),
    )


def _key(
    source: SourceModel,
    reference: Checkpoint,
    text: EvaluationText,
    windows: int,
    context: int,
    device: Device,
) -> str:
    parts = (source.identity, reference.rounding, text.sha256, windows, context, device)
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:24]


def _read(path: Path) -> CheckpointQuality | None:
    try:
        return CheckpointQuality.model_validate_json(path.read_bytes())
    except (OSError, ValidationError):
        return None
