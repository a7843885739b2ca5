"""Make a Hugging Face folder of a quantized GGUF source, once, and say where its weights come from.

Artifacts are made of a folder or file with floating-point weights; a source that exists only as a
quantized GGUF is dequantized first. Its loss is then part of the source, and its manifest says so.
"""

import datetime
import shutil
from pathlib import Path

from pydantic import BaseModel, TypeAdapter

from quant_assets.atomic_files import write_text_atomically
from quant_assets.formats.gguf_header import read_gguf_header
from quant_assets.host.locks import LONG_WAIT_S, exclusive_lock
from quant_assets.models.identity import SOURCE_MANIFEST
from quant_assets.models.source import SourceModel, resolve_configured_source, resolve_source
from quant_assets.processes.session import UNATTENDED, WorkerSession
from quant_assets.processes.supervisor import run_worker
from quant_assets.record_files import UtcTime, read_record
from quant_assets.settings import Settings

"""Opens what a worker reports to, where one has to be started; yields its variables."""
FLOAT_TYPES = frozenset({"F32", "F16", "BF16"})


class DequantizeJob(BaseModel):
    """Dequantize the GGUF file `source` into the new folder `output`."""

    source: Path
    output: Path


class DequantizeResult(BaseModel):
    """What the folder holds, and the GGUF file type its weights had."""

    weights_file_type: str
    n_parameters: int
    dtype: str
    library_versions: dict[str, str]


class SourceManifest(BaseModel):
    """`source_manifest.json` in a dequantized folder."""

    name: str
    provenance: str
    weights_file_type: str
    origin_identity: str
    n_parameters: int
    dtype: str
    library_versions: dict[str, str]
    created_at: UtcTime


_MANIFEST = TypeAdapter(SourceManifest)


def source_manifest(folder: Path) -> SourceManifest | None:
    """The manifest of a folder that `dequantized_folder` made; None for any other folder.

    Raises `InputError` for a damaged one.
    """
    path = folder / SOURCE_MANIFEST
    if not path.exists():
        return None
    return read_record(path, _MANIFEST, "source manifest", "Remove its folder; it is made again.")


def is_quantized(source: SourceModel) -> bool:
    """Whether a source holds quantized weights, so that artifacts cannot be made of it directly."""
    return source.kind == "gguf" and any(
        tensor.type_name not in FLOAT_TYPES for tensor in read_gguf_header(source.path).tensors
    )


def float_source(
    text: str,
    name: str,
    settings: Settings,
    *,
    session: WorkerSession = UNATTENDED,
) -> SourceModel:
    """The source that the configuration calls `text`, dequantized once if it has to be."""
    source = resolve_configured_source(text, settings)
    if is_quantized(source):
        return dequantized_folder(source, name, settings, session=session)
    return source


def dequantized_folder(
    source: SourceModel,
    name: str,
    settings: Settings,
    *,
    session: WorkerSession = UNATTENDED,
) -> SourceModel:
    """Return the Hugging Face folder made of the quantized GGUF `source`, making it if need be.

    The folder is `<home>/models/<name>`; it is made anew when the source's content changed.
    """
    folder = settings.sources / name
    settings.sources.mkdir(parents=True, exist_ok=True)
    lock = settings.locks / f"source-{name}.lock"
    with exclusive_lock(lock, f"the source model {name}", wait_s=LONG_WAIT_S):
        manifest = source_manifest(folder)
        if manifest is None or manifest.origin_identity != source.identity:
            _make(source, name, folder, session=session)
            manifest = source_manifest(folder)
    assert manifest is not None
    made = resolve_source(str(folder), settings)
    return made.model_copy(update={"name": name, "provenance": manifest.provenance})


def _make(
    source: SourceModel,
    name: str,
    folder: Path,
    *,
    session: WorkerSession,
) -> None:
    staging = folder.with_name(f".{name}.staging")
    shutil.rmtree(staging, ignore_errors=True)
    result = run_worker(
        "checkpoint.dequantize",
        DequantizeJob(source=source.path, output=staging),
        DequantizeResult,
        session=session,
    )
    manifest = SourceManifest(
        name=name,
        provenance=(
            f"dequantized from {source.path.name}, whose weights are "
            f"{result.weights_file_type} ({source.provenance})"
        ),
        weights_file_type=result.weights_file_type,
        origin_identity=source.identity,
        n_parameters=result.n_parameters,
        dtype=result.dtype,
        library_versions=result.library_versions,
        created_at=datetime.datetime.now(datetime.UTC),
    )
    write_text_atomically(staging / SOURCE_MANIFEST, manifest.model_dump_json(indent=2))
    shutil.rmtree(folder, ignore_errors=True)
    staging.replace(folder)
