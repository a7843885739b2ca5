"""Restore a quantized model's plain 16 bit weights, and record where they come from.

A worker writes the Hugging Face folder: `checkpoint.dequantize` from a GGUF file,
`checkpoint.unpack` from a GPTQ or AWQ folder. The folder's `source_manifest.json` then names the
quantized model, whose loss is part of the restored weights.
"""

import datetime
from pathlib import Path

from pydantic import BaseModel, TypeAdapter

from quant_assets.atomic_files import write_text_atomically
from quant_assets.models.identity import SOURCE_MANIFEST
from quant_assets.models.inspection import inspect_model
from quant_assets.models.source import SourceModel
from quant_assets.models.stored_quantization import detect_quantization
from quant_assets.processes.quantization_job import QuantizationJob
from quant_assets.processes.session import UNATTENDED, WorkerSession
from quant_assets.processes.supervisor import run_worker
from quant_assets.record_files import UtcTime, read_record


class DequantizeJob(BaseModel):
    """Dequantize the GGUF file `source` into the new folder `output`."""

    source: Path
    output: Path


class DequantizeResult(BaseModel):
    """The restored folder's dtype and size, and the GGUF file type that its weights had."""

    weights_file_type: str
    n_parameters: int
    dtype: str
    library_versions: dict[str, str]
    peak_rss_bytes: int
    peak_own_bytes: int | None = None
    quantization_job: QuantizationJob | None = None


class UnpackJob(BaseModel):
    """Restore the GPTQ or AWQ folder `source` into the new folder `output`."""

    source: Path
    output: Path


class UnpackResult(BaseModel):
    """The matrices' former bits, their count, and the dtype they have now."""

    bits: int
    n_matrices: int
    dtype: str
    peak_rss_bytes: int
    peak_own_bytes: int | None = None
    quantization_job: QuantizationJob | None = None


class SourceManifest(BaseModel):
    """`source_manifest.json` in a folder of restored weights; peaks are bytes, null if unknown."""

    name: str
    provenance: str
    weights_file_type: str
    origin_identity: str
    n_parameters: int
    dtype: str
    library_versions: dict[str, str]
    peak_rss_bytes: int | None = None
    peak_own_bytes: int | None = None
    quantization_job: QuantizationJob | None = None
    created_at: UtcTime


_MANIFEST = TypeAdapter(SourceManifest)


def source_manifest(folder: Path) -> SourceManifest | None:
    """The manifest of a folder of restored weights; None for any other folder.

    Raises `InputError` for a damaged manifest.
    """
    path = folder / SOURCE_MANIFEST
    if not path.exists():
        return None
    return read_record(path, _MANIFEST, "source manifest", "Remove its folder to rebuild it.")


def restored_provenance(source: SourceModel, former: str) -> str:
    """The provenance of weights restored from `source`, whose quantization type was `former`."""
    return f"dequantized from {source.path.name}, whose weights are {former} ({source.provenance})"


def restore_plain_weights(
    source: SourceModel, folder: Path, *, name: str, session: WorkerSession = UNATTENDED
) -> SourceManifest:
    """Write `source`'s plain weights and their manifest to the new folder `folder`.

    `source` is a GGUF file or a GPTQ or AWQ folder; `name` is the restored model's name. Raises
    `InputError` for a source that cannot be restored.
    """
    restored: DequantizeResult | UnpackResult
    if source.kind == "gguf":
        dequantized = run_worker(
            "checkpoint.dequantize",
            DequantizeJob(source=source.path, output=folder),
            DequantizeResult,
            session=session,
        )
        restored, former = dequantized, dequantized.weights_file_type
        n_parameters, libraries = dequantized.n_parameters, dequantized.library_versions
    else:
        unpacked = run_worker(
            "checkpoint.unpack",
            UnpackJob(source=source.path, output=folder),
            UnpackResult,
            session=session,
        )
        method = detect_quantization(source.path).format
        restored, former = unpacked, f"{method.upper()}-{unpacked.bits}"
        n_parameters, libraries = inspect_model(folder).n_parameters, {}
    manifest = SourceManifest(
        name=name,
        provenance=restored_provenance(source, former),
        weights_file_type=former,
        origin_identity=source.identity,
        n_parameters=n_parameters,
        dtype=restored.dtype,
        library_versions=libraries,
        peak_rss_bytes=restored.peak_rss_bytes,
        peak_own_bytes=restored.peak_own_bytes,
        quantization_job=restored.quantization_job,
        created_at=datetime.datetime.now(datetime.UTC),
    )
    write_text_atomically(folder / SOURCE_MANIFEST, manifest.model_dump_json(indent=2))
    return manifest
