"""The last step of a conversion: from plain weights to the target format, with its lineage."""

import json
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict

from quant_assets.artifacts.store import ArtifactStore
from quant_assets.atomic_files import write_text_atomically
from quant_assets.formats.gguf_levels import parse_level
from quant_assets.models.integrity import check_gguf, check_hf_folder
from quant_assets.models.source import SourceModel
from quant_assets.models.stored_quantization import detect_quantization
from quant_assets.processes.session import UNATTENDED, WorkerSession
from quant_assets.quantize.conversion.convert import ConversionLoss, lineage, plain_folder
from quant_assets.quantize.gguf.job import QuantizeGgufJob, check_imatrix, quantize_gguf
from quant_assets.quantize.groupwise.artifact import GroupwiseArtifact
from quant_assets.quantize.groupwise.layout import check_layout
from quant_assets.quantize.groupwise.request import (
    GroupwiseRequest,
    make_requested_artifact,
    resolve_request,
)
from quant_assets.settings import Settings

_RESTORING_SHARE = 0.3
"""Share of a conversion's time that restoring plain weights usually takes."""


class HfTarget(BaseModel):
    """A Hugging Face folder of plain weights."""

    model_config = ConfigDict(frozen=True)

    format: Literal["hf"] = "hf"


class GgufTarget(BaseModel):
    """A GGUF file at `level`, weighted by the importance matrix `imatrix` if given."""

    model_config = ConfigDict(frozen=True)

    format: Literal["gguf"] = "gguf"
    level: str
    imatrix: Path | None = None
    threads: int | None = None
    resume: bool = True


class ConversionRequest(BaseModel):
    """Convert to `target` inside the folder `output`; the plain weights in between go there too.

    `overwrite` replaces a folder or file of another model, or a file of unknown origin.
    """

    model_config = ConfigDict(frozen=True)

    target: HfTarget | GgufTarget | GroupwiseRequest
    output: Path
    overwrite: bool = False


def check_conversion(source: SourceModel, request: ConversionRequest, settings: Settings) -> None:
    """Check the source's files and the target's options from headers alone, before any work.

    Raises `InputError` for a damaged source, options that contradict each other, and a target that
    the source's shape does not fit.
    """
    check_model(source.path)
    target = request.target
    if isinstance(target, GgufTarget):
        check_imatrix(parse_level(target.level), target.imatrix)
    elif isinstance(target, GroupwiseRequest):
        resolve_request(source, target, settings.cache)


def check_model(path: Path) -> None:
    """Check a GGUF file, a plain folder, or a GPTQ or AWQ folder from its headers.

    Raises `InputError` or `CheckFailed` for files that are missing, damaged, or do not match their
    configuration.
    """
    if path.is_file():
        check_gguf(path)
    elif detect_quantization(path).format in ("gptq", "awq"):
        check_layout(path)
    else:
        check_hf_folder(path)


def convert_model(
    source: SourceModel,
    request: ConversionRequest,
    loss: ConversionLoss,
    settings: Settings,
    *,
    session: WorkerSession = UNATTENDED,
) -> Path | GroupwiseArtifact:
    """Convert `source`, whose `loss` was accepted; returns the folder, the file or the artifact.

    Source and result are both validated: the source and a plain folder by `check_model`, other
    results when they are made, by loading them. A GGUF file gets its lineage beside it
    (`.lineage.json`), an artifact in its manifest. Raises what `check_conversion`, `plain_folder`,
    `quantize_gguf` and `make_requested_artifact` raise.
    """
    check_conversion(source, request, settings)
    output, target = request.output, request.target
    plain = plain_folder(
        source,
        output / f"{source.name}-hf",
        settings,
        overwrite=request.overwrite,
        session=session if isinstance(target, HfTarget) else session.part(0, _RESTORING_SHARE),
    )
    # A source that is plain already was not restored: all of the work is still to do.
    rest = session if plain.path == source.path else session.part(_RESTORING_SHARE, 1)
    origin = lineage(source, detect_quantization(source.path), loss)
    if isinstance(target, GroupwiseRequest):
        return make_requested_artifact(
            plain,
            target,
            ArtifactStore(output),
            cache=settings.cache,
            lineage=origin,
            session=rest,
        )
    if isinstance(target, HfTarget):
        check_model(plain.path)
        return plain.path
    level = parse_level(target.level).name
    file = output / f"{plain.name}-{level}.gguf"
    quantize_gguf(
        QuantizeGgufJob(
            source=plain.path,
            source_kind=plain.kind,
            source_identity=plain.identity,
            level=level,
            output=file,
            imatrix=target.imatrix,
            threads=target.threads,
            resume=target.resume,
            record=True,
            overwrite=request.overwrite,
        ),
        session=rest,
    )
    write_text_atomically(file.with_suffix(".lineage.json"), json.dumps(origin, indent=2))
    return file
