"""How many samples of how many tokens a job is calibrated on: the standard, or as many as fit.

`STANDARD_SIZE` is reduced where the model's context, the text or this machine's memory requires it,
and the reduction is reported. Numbers that the user named are kept or refused, never changed. Halving
makes the outcome independent of small changes in free memory, so a repeated command finds its job.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Final

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from quant_assets.artifacts.store import ArtifactStore
from quant_assets.errors import InputError, ResourceError
from quant_assets.formats.artifact_formats import GroupwiseFormat
from quant_assets.host.caches import remember
from quant_assets.host.resources import available_memory
from quant_assets.models.inspection import inspect_model
from quant_assets.processes.session import UNATTENDED, WorkerSession
from quant_assets.processes.supervisor import run_worker
from quant_assets.quantize.groupwise.artifact import (
    GroupwiseSpec,
    check_source,
    find_groupwise_artifact,
    has_finished_layers,
)
from quant_assets.quantize.groupwise.job import (
    ENVIRONMENT,
    FEWEST_TOKENS,
    STANDARD_SIZE,
    WORKER_VARIABLES,
    CalibrationSize,
    memory_needed,
    text_too_short,
)

_USABLE_MEMORY: Final = 0.9
"""Of the available memory; the rest is a margin for other programs until the work begins."""


class CalibrationChoice(BaseModel):
    """The numbers that the user named; None stands for the standard, as far as it fits."""

    model_config = ConfigDict(frozen=True)

    samples: int | None = Field(default=None, ge=1)
    sequence_length: int | None = Field(default=None, ge=FEWEST_TOKENS)

    @property
    def is_complete(self) -> bool:
        """Whether both numbers are named."""
        return self.samples is not None and self.sequence_length is not None


class TokenCountJob(BaseModel):
    """Count the tokens of `text` with the tokenizer in the folder `source`."""

    source: Path
    text: Path


class TokenCount(BaseModel):
    """Tokens of the part of a text that calibration reads."""

    n_tokens: int


def fitted_spec(
    spec: GroupwiseSpec,
    choice: CalibrationChoice,
    store: ArtifactStore,
    *,
    cache: Path,
    resume: bool = True,
    session: WorkerSession = UNATTENDED,
) -> GroupwiseSpec:
    """`spec` with the samples and tokens to use, and remarks about text and numbers for the user.

    The largest size that memory allows is taken, or a larger one whose artifact `store` has. With
    `resume`, an interrupted job of a smaller size that has finished layers is resumed instead.
    Raises `InputError` for a source that cannot be quantized, and for named numbers that exceed the
    text or the model's context; `ResourceError` for numbers that memory does not allow.
    """
    check_source(spec.source, spec.settings)
    shape = inspect_model(spec.source.path)
    method = spec.settings.format
    n_tokens = None if choice.is_complete else _text_tokens(spec, cache, session)
    most, reasons = size_for_text(
        method, choice, shape.context_length, n_tokens, spec.calibration.name
    )
    sizes = list(_halvings(most, choice))
    specs = [spec.with_size(size) for size in sizes]
    available = available_memory()
    needed = [memory_needed(shape, method, size) for size in sizes]
    chosen = next(
        (
            number
            for number, candidate in enumerate(specs)
            if needed[number] <= _USABLE_MEMORY * available
            or find_groupwise_artifact(candidate.job, store)
        ),
        None,
    )
    if chosen is None:
        raise ResourceError(
            f"Calibrating on {sizes[-1]} does not fit in memory.",
            f"It needs about {needed[-1] / 1e9:.2f} GB, {available / 1e9:.2f} GB are available.",
            "Close other programs, or use a machine with more memory."
            if sizes[-1].samples == 1
            else "Use fewer samples (--calibration-samples; without it as many are used as fit), "
            "close other programs, or use a machine with more memory.",
        )
    if chosen > 0:
        reasons.append(
            f"{most} need about {needed[0] / 1e9:.1f} GB of memory, {available / 1e9:.1f} GB are "
            "available"
        )
    if resume and find_groupwise_artifact(specs[chosen].job, store) is None:
        for number in range(chosen, len(specs)):
            if has_finished_layers(specs[number].job, store):
                if number > chosen:
                    reasons.append("an interrupted run with these numbers is resumed")
                chosen = number
                break
    remarks = [spec.calibration.warning] if spec.calibration.warning else []
    if reasons:
        remarks.append(
            f"Calibrating on {sizes[chosen]} instead of {STANDARD_SIZE[method]}: "
            f"{'; '.join(reasons)}."
        )
    return replace(specs[chosen], remarks=tuple(remarks))


def size_for_text(
    method: GroupwiseFormat,
    choice: CalibrationChoice,
    context_length: int | None,
    n_tokens: int | None,
    text_name: str,
) -> tuple[CalibrationSize, list[str]]:
    """(the size that the model's context and a text of `n_tokens` allow, why it is reduced).

    Samples are reduced before their length. None stands for an unlimited context, or a text that is
    long enough. Raises `InputError` when a named number exceeds what there is.
    """
    standard = STANDARD_SIZE[method]
    length = choice.sequence_length or standard.sequence_length
    samples = choice.samples or standard.samples
    reasons: list[str] = []
    if context_length is not None and length > context_length:
        if choice.sequence_length is not None:
            raise InputError(
                f"Samples of {length} tokens exceed the model's context.",
                f"It takes at most {context_length} tokens.",
                f"Use --sequence-length {context_length} or less.",
            )
        length = context_length
        reasons.append(f"the model takes at most {context_length} tokens")
    if n_tokens is not None and n_tokens < samples * length:
        if choice.samples is None:
            samples = max(1, n_tokens // length)
        if choice.sequence_length is None:
            length = min(length, n_tokens // samples)
        size = CalibrationSize(samples, length)
        if length < FEWEST_TOKENS or n_tokens < size.n_tokens:
            raise text_too_short(text_name, n_tokens, size)
        reasons.append(f"the text {text_name} has {n_tokens:,} tokens")
    return CalibrationSize(samples, length), reasons


def _halvings(size: CalibrationSize, choice: CalibrationChoice) -> Iterator[CalibrationSize]:
    """`size`, and smaller ones: fewer samples, or shorter ones if the user named their number."""
    samples, length = size
    while samples >= 1 and length >= FEWEST_TOKENS:
        yield CalibrationSize(samples, length)
        if choice.samples is None:
            samples //= 2
        elif choice.sequence_length is None:
            length //= 2
        else:
            return


def _text_tokens(spec: GroupwiseSpec, cache: Path, session: WorkerSession) -> int:
    """Tokens of the calibration text, counted once by the tokenizer of the job's environment."""
    environment = ENVIRONMENT[spec.settings.engine]
    parts = (spec.source.identity, spec.calibration.sha256, spec.job.library_versions)
    key = hashlib.sha256(repr(parts).encode()).hexdigest()[:24]
    kept = cache / "token_counts" / f"{key}.json"
    try:
        return TokenCount.model_validate_json(kept.read_bytes()).n_tokens
    except (OSError, ValidationError):
        pass  # counted below
    counted = run_worker(
        "groupwise.token_count",
        TokenCountJob(source=spec.source.path, text=spec.calibration.path),
        TokenCount,
        environment=environment,
        session=session.with_defaults({**WORKER_VARIABLES, "TOKENIZERS_PARALLELISM": "false"}),
    )
    remember(kept, counted.model_dump_json())
    return counted.n_tokens
