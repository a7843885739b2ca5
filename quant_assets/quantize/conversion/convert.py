"""From one format to another: what is lost, and the folder of plain weights in between.

Every conversion goes through plain 16 bit weights; what a quantizer took away stays away. A loss
counts as significant, and is confirmed first, when weights that are quantized already are quantized
again (double quantization), or when the target has fewer than `FEWEST_BITS` bits.
"""

import datetime
import shutil
from pathlib import Path
from typing import Final, Literal

from pydantic import BaseModel

from quant_assets.atomic_files import replace_durably, write_text_atomically
from quant_assets.errors import InputError
from quant_assets.host.own_files import locked_file, own_folder
from quant_assets.host.resources import check_output_folder
from quant_assets.models.identity import SOURCE_MANIFEST
from quant_assets.models.inspection import inspect_model
from quant_assets.models.integrity import check_hf_folder
from quant_assets.models.source import SourceModel, resolve_source
from quant_assets.processes.session import UNATTENDED, WorkerSession
from quant_assets.processes.supervisor import run_worker
from quant_assets.quantize.conversion.dequantize import (
    DequantizeJob,
    DequantizeResult,
    SourceManifest,
    source_manifest,
)
from quant_assets.serving.intent import StoredQuantization, detect_quantization
from quant_assets.settings import Settings

ConversionTarget = Literal["gguf", "awq", "gptq", "hf"]

FEWEST_BITS: Final = 4.0
_FLOAT_BITS: Final = 16.0
_UNQUANTIZED: Final = 16


class UnpackJob(BaseModel):
    """Restore the GPTQ or AWQ folder `source` into the new folder `output`."""

    source: Path
    output: Path


class UnpackResult(BaseModel):
    """The bits that the matrices had, how many there were, and the type of their numbers now."""

    bits: int
    n_matrices: int
    dtype: str


class ConversionLoss(BaseModel):
    """What a conversion takes away; bits are bits per weight."""

    source_format: str
    source_bits: float
    target: str
    target_bits: float
    double_quantization: bool
    significant: bool

    @property
    def text(self) -> str:
        """For a person who is to agree."""
        lines = [
            f"The source is {self.source_format} with {self.source_bits:.2f} bits a weight, the "
            f"target {self.target} with about {self.target_bits:.2f}."
        ]
        if self.double_quantization:
            lines.append(
                "Weights that are quantized already are quantized again; both losses add up. "
                "The original model is the better source."
            )
        elif self.target == "hf" and self.source_bits < _FLOAT_BITS:
            lines.append("What the source's quantization took away does not come back.")
        return " ".join(lines)


def conversion_loss(source: Path, target: str, target_bits: float) -> ConversionLoss:
    """What converting `source` to `target` loses; raises `InputError` when it is no model."""
    stored = detect_quantization(source)
    shape = inspect_model(source)
    source_bits = 8 * (shape.weights_bytes or 0) / shape.n_parameters
    quantized = stored.bits < _UNQUANTIZED
    double = quantized and target_bits < _FLOAT_BITS
    return ConversionLoss(
        source_format=stored.format,
        source_bits=source_bits,
        target=target,
        target_bits=target_bits,
        double_quantization=double,
        significant=double or target_bits < FEWEST_BITS,
    )


def plain_folder(
    source: SourceModel,
    output: Path,
    settings: Settings,
    *,
    overwrite: bool = False,
    session: WorkerSession = UNATTENDED,
) -> SourceModel:
    """The model as a Hugging Face folder of plain weights, made at `output` unless it is one.

    The folder's `source_manifest.json` says where its weights come from; one that was made of the
    same source is used again, and with `overwrite` one of another source is replaced. Raises
    `InputError` when the source cannot be restored or `output` holds something else, and
    `ResourceError` while another process makes the folder.
    """
    stored = detect_quantization(source.path)
    if source.kind == "hf" and stored.format == "float":
        return source
    if source.kind == "hf" and stored.format not in ("gptq", "awq"):
        raise InputError(
            f"A {stored.format} checkpoint is not converted.",
            "GGUF, GPTQ and AWQ are.",
            "Use the model's original 16 bit checkpoint.",
        )
    check_output_folder(output.parent)
    lock = output.with_name(f".{output.name}.lock")
    with locked_file(lock, f"the folder {output.name}", remove=True):
        known = _known_folder(source, output, overwrite=overwrite)
        if known is not None:
            return _plain_source(source, output, known.weights_file_type, settings)
        staging = output.with_name(f".{output.name}.part")
        own_folder(staging)
        shutil.rmtree(staging)
        weights = _restore(source, stored, staging, session)
        if output.is_symlink():
            output.unlink()
        elif output.exists():
            _remove_folder(output)
        replace_durably(staging, output)
    return _plain_source(source, output, weights, settings)


def _known_folder(source: SourceModel, output: Path, *, overwrite: bool) -> SourceManifest | None:
    """The manifest of the folder at `output` if it is of `source`; None when it may be made."""
    if not output.exists():
        return None
    earlier = source_manifest(output) if output.is_dir() else None
    if earlier is not None and earlier.origin_identity == source.identity:
        check_hf_folder(output)
        return earlier
    if earlier is not None and overwrite:
        return None
    raise InputError(
        f"The folder {output} exists.",
        "It does not hold the weights of this source."
        if earlier is None
        else f"It does not hold the weights of {source.path}: they were {earlier.provenance}.",
        "Remove it, or choose another --output-dir."
        if earlier is None
        else "Replace it with --overwrite, or choose another --output-dir.",
    )


def _remove_folder(folder: Path) -> None:
    """Take the name away first, so that no half removed folder is ever found under it."""
    aside = folder.with_name(f".{folder.name}.old")
    own_folder(aside)
    shutil.rmtree(aside)
    folder.rename(aside)
    shutil.rmtree(aside)


def _restore(
    source: SourceModel, stored: StoredQuantization, staging: Path, session: WorkerSession
) -> str:
    """Make the plain folder `staging`; returns the type that the weights had."""
    if source.kind == "gguf":
        made = run_worker(
            "checkpoint.dequantize",
            DequantizeJob(source=source.path, output=staging),
            DequantizeResult,
            session=session,
        )
        weights, dtype = made.weights_file_type, made.dtype
        libraries = made.library_versions
    else:
        restored = run_worker(
            "checkpoint.unpack",
            UnpackJob(source=source.path, output=staging),
            UnpackResult,
            session=session,
        )
        weights, dtype = f"{stored.format.upper()}-{restored.bits}", restored.dtype
        libraries = {}
    _write_manifest(staging, source, weights, dtype, libraries)
    return weights


def _plain_source(
    source: SourceModel, folder: Path, weights: str, settings: Settings
) -> SourceModel:
    return resolve_source(str(folder), settings).model_copy(
        update={"name": source.name, "provenance": _provenance(source, weights)}
    )


def _provenance(source: SourceModel, weights: str) -> str:
    return f"dequantized from {source.path.name}, whose weights are {weights} ({source.provenance})"


def _write_manifest(
    folder: Path, source: SourceModel, weights: str, dtype: str, libraries: dict[str, str]
) -> None:
    manifest = SourceManifest(
        name=source.name,
        provenance=_provenance(source, weights),
        weights_file_type=weights,
        origin_identity=source.identity,
        n_parameters=inspect_model(folder).n_parameters,
        dtype=dtype,
        library_versions=libraries,
        created_at=datetime.datetime.now(datetime.UTC),
    )
    write_text_atomically(folder / SOURCE_MANIFEST, manifest.model_dump_json(indent=2))


def lineage(
    source: SourceModel, stored: StoredQuantization, loss: ConversionLoss
) -> dict[str, str]:
    """What the manifest of a converted artifact says about its origin."""
    return {
        "converted_from": stored.format,
        "converted_from_identity": source.identity,
        "converted_from_bits_per_weight": f"{loss.source_bits:.4f}",
        "double_quantization": str(loss.double_quantization).lower(),
    }
