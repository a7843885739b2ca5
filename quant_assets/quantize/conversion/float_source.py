"""A configured source with floating-point weights: the model itself, or restored from it once.

Artifacts are made from floating-point weights. A source that exists only as a quantized GGUF is
dequantized once, into the data root; its loss is then part of the source, as its manifest says.
"""

import shutil
from pathlib import Path

from quant_assets.formats.gguf_header import read_gguf_header
from quant_assets.host.locks import LONG_WAIT_S, exclusive_lock
from quant_assets.models.source import (
    SourceLocation,
    SourceModel,
    locate_source,
    resolve_configured_source,
    resolve_source,
)
from quant_assets.processes.session import UNATTENDED, WorkerSession
from quant_assets.quantize.conversion.plain_weights import restore_plain_weights, source_manifest
from quant_assets.settings import Settings

FLOAT_TYPES = frozenset({"F32", "F16", "BF16"})


def is_quantized(source: SourceModel) -> bool:
    """Whether a source is a GGUF file with quantized weights, which artifacts are not made from."""
    return source.kind == "gguf" and _has_quantized_weights(source.path)


def locate_float_source(text: str, name: str, settings: Settings) -> SourceLocation:
    """Where `float_source` finds or puts the weights of a configured source, without a download."""
    found = locate_source(text, settings)
    if found.path is None or not found.path.is_file() or not _has_quantized_weights(found.path):
        return found
    folder = settings.sources / name
    return SourceLocation(path=folder if folder.is_dir() else None, name=str(folder))


def float_source(
    text: str,
    name: str,
    settings: Settings,
    *,
    session: WorkerSession = UNATTENDED,
) -> SourceModel:
    """The source that the configuration names `text`, dequantized once if it is quantized."""
    source = resolve_configured_source(text, settings, session=session)
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
    """The Hugging Face folder of the quantized GGUF `source`, written unless it exists.

    The folder is `<home>/models/<name>`; it is rewritten when the source's content changed.
    """
    folder = settings.sources / name
    settings.sources.mkdir(parents=True, exist_ok=True)
    lock = settings.locks / f"source-{name}.lock"
    with exclusive_lock(lock, f"the source model {name}", wait_s=LONG_WAIT_S):
        manifest = source_manifest(folder)
        if manifest is None or manifest.origin_identity != source.identity:
            staging = folder.with_name(f".{name}.staging")
            shutil.rmtree(staging, ignore_errors=True)
            manifest = restore_plain_weights(source, staging, name=name, session=session)
            shutil.rmtree(folder, ignore_errors=True)
            staging.replace(folder)
    restored = resolve_source(str(folder), settings)
    return restored.model_copy(update={"name": name, "provenance": manifest.provenance})


def _has_quantized_weights(gguf_file: Path) -> bool:
    return any(
        tensor.type_name not in FLOAT_TYPES for tensor in read_gguf_header(gguf_file).tensors
    )
