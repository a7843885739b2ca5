"""A GPTQ or AWQ artifact as the user requests it: texts by name, an engine that fits the model."""

from collections.abc import Mapping
from pathlib import Path

from pydantic import BaseModel, ConfigDict

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
from quant_assets.quantize.groupwise.gate import PerplexityGate
from quant_assets.quantize.groupwise.job import (
    DEFAULT_SAMPLES,
    DEFAULT_SEQUENCE_LENGTH,
    Engine,
    groupwise_settings,
)
from quant_assets.texts.calibration import calibration_text
from quant_assets.texts.evaluation import evaluation_text


class GroupwiseRequest(BaseModel):
    """How to quantize by groups, and on which texts.

    `calibration` is the choice for `calibration_text`; `text` is the file to measure perplexity on,
    None the default text. The other fields are those of
    `GroupwiseSettings` and `make_groupwise_artifact`.
    """

    model_config = ConfigDict(frozen=True)

    format: GroupwiseFormat
    bits: int = 4
    group_size: int = DEFAULT_GROUP_SIZE
    desc_act: bool = False
    sym: bool = True
    engine: Engine | None = None
    calibration: str | None = None
    calibration_samples: int = DEFAULT_SAMPLES
    sequence_length: int = DEFAULT_SEQUENCE_LENGTH
    device: Device = "auto"
    gate: bool = True
    text: Path | None = None
    threads: int | None = None
    resume: bool = True


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

    Raises what `make_groupwise_artifact` raises, and `CheckFailed` when the gate rejects it.
    """
    chosen = groupwise_settings(
        group_quantization(request.format, request.bits, request.group_size),
        architecture=inspect_model(source.path).architecture,
        engine=request.engine,
        desc_act=request.desc_act,
        sym=request.sym,
        samples=request.calibration_samples,
        sequence_length=request.sequence_length,
    )
    calibration = calibration_text(request.calibration, cache)
    _warn(calibration.warning, session)
    gate = PerplexityGate(
        text=evaluation_text(request.text or "auto", cache),
        cache=cache,
        threads=request.threads,
        device=request.device,
    )
    made = make_groupwise_artifact(
        GroupwiseSpec(source.name, source, chosen, calibration, lineage or {}),
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
