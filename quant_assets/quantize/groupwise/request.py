"""A GPTQ or AWQ artifact as the user requests it: texts by name, an engine that fits the model."""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from pydantic import BaseModel, ConfigDict, Field

from quant_assets.artifacts.store import ArtifactStore
from quant_assets.formats.artifact_formats import GroupwiseFormat
from quant_assets.formats.group_quantization import DEFAULT_GROUP_SIZE, group_quantization
from quant_assets.host.devices import Device
from quant_assets.models.inspection import inspect_model
from quant_assets.models.source import SourceModel
from quant_assets.processes.protocol import LogEvent
from quant_assets.processes.session import UNATTENDED, WorkerSession
from quant_assets.quantize.groupwise.artifact import (
    GroupwiseArtifact,
    GroupwiseSpec,
    make_groupwise_artifact,
)
from quant_assets.quantize.groupwise.calibration import CalibrationChoice, fitted_spec
from quant_assets.quantize.groupwise.gate import PerplexityGate
from quant_assets.quantize.groupwise.job import (
    FEWEST_TOKENS,
    Engine,
    GroupwiseSettings,
    check_shape,
    groupwise_settings,
)
from quant_assets.texts.calibration import CalibrationText, calibration_text
from quant_assets.texts.evaluation import EvaluationText, evaluation_text


class GroupwiseRequest(BaseModel):
    """How to quantize by groups, and on which texts.

    `calibration` is the choice for `calibration_text`; `text` is the file to measure perplexity on,
    None the default text. Without numbers of samples and tokens the standard is used as far as it
    fits (`quantize.groupwise.calibration`). The other fields are those of `groupwise_settings` and
    `make_groupwise_artifact`.
    """

    model_config = ConfigDict(frozen=True)

    format: GroupwiseFormat
    bits: int = 4
    group_size: int = DEFAULT_GROUP_SIZE
    desc_act: bool = False
    sym: bool | None = None
    engine: Engine | None = None
    calibration: str | None = None
    calibration_samples: int | None = Field(default=None, ge=1)
    sequence_length: int | None = Field(default=None, ge=FEWEST_TOKENS)
    device: Device = "auto"
    gate: bool = True
    text: Path | None = None
    threads: int | None = None
    resume: bool = True


class ResolvedRequest(NamedTuple):
    """A request's settings, with the standard size of calibration where none is named, and texts."""

    settings: GroupwiseSettings
    calibration: CalibrationText
    text: EvaluationText


def resolve_request(source: SourceModel, request: GroupwiseRequest, cache: Path) -> ResolvedRequest:
    """The settings and texts of a request, without any work.

    Raises `InputError` for settings that contradict each other or do not fit the shape of `source`,
    and for texts that cannot be used.
    """
    shape = inspect_model(source.path)
    settings = groupwise_settings(
        group_quantization(request.format, request.bits, request.group_size),
        architecture=shape.architecture,
        engine=request.engine,
        desc_act=request.desc_act,
        sym=request.sym,
        samples=request.calibration_samples,
        sequence_length=request.sequence_length,
    )
    check_shape(shape, settings)
    return ResolvedRequest(
        settings,
        calibration_text(request.calibration, cache),
        evaluation_text(request.text or "auto", cache),
    )


def make_requested_artifact(
    source: SourceModel,
    request: GroupwiseRequest,
    store: ArtifactStore,
    *,
    cache: Path,
    lineage: Mapping[str, str] | None = None,
    session: WorkerSession = UNATTENDED,
) -> GroupwiseArtifact:
    """Make the artifact, or find it in `store`; warnings go to the session as log events.

    Raises what `resolve_request`, `fitted_spec` and `make_groupwise_artifact` raise, and
    `CheckFailed` when the gate rejects it.
    """
    settings, calibration, text = resolve_request(source, request, cache)
    gate = PerplexityGate(text, cache, threads=request.threads, device=request.device)
    spec = fitted_spec(
        GroupwiseSpec(source.name, source, settings, calibration, lineage or {}),
        CalibrationChoice(
            samples=request.calibration_samples, sequence_length=request.sequence_length
        ),
        store,
        cache=cache,
        resume=request.resume,
        session=session,
    )
    for remark in spec.remarks:
        _warn(remark, session)
    made = make_groupwise_artifact(
        spec,
        store,
        gate=gate if request.gate else None,
        threads=request.threads,
        device=request.device,
        resume=request.resume,
        session=session,
    ).valid()
    _warn(made.quality_warning, session)
    return made


def _warn(text: str | None, session: WorkerSession) -> None:
    if text and session.on_event is not None:
        session.on_event(LogEvent(level="warning", message=text))
