"""Conversion between formats: the loss it brings, and the folder of plain weights in between.

Every conversion goes through plain 16 bit weights; what a quantizer discarded stays lost. A loss is
significant, and needs the user's agreement, when weights that are already quantized are quantized
again (double quantization), or when the target has fewer than `FEWEST_BITS` bits.
"""

import shutil
from pathlib import Path
from typing import Final, Literal

from pydantic import BaseModel

from quant_assets.atomic_files import replace_durably
from quant_assets.errors import InputError
from quant_assets.host.own_files import locked_file, own_folder
from quant_assets.host.resources import check_output_folder
from quant_assets.models.inspection import inspect_model
from quant_assets.models.integrity import check_hf_folder
from quant_assets.models.source import SourceModel, resolve_source
from quant_assets.models.stored_quantization import StoredQuantization, detect_quantization
from quant_assets.processes.session import UNATTENDED, WorkerSession
from quant_assets.quantize.conversion.plain_weights import (
    SourceManifest,
    restore_plain_weights,
    restored_provenance,
    source_manifest,
)
from quant_assets.settings import Settings

ConversionTarget = Literal["gguf", "awq", "gptq", "hf"]

FEWEST_BITS: Final = 4.0
_FLOAT_BITS: Final = 16.0
_UNQUANTIZED: Final = 16


class ConversionLoss(BaseModel):
    """The loss that a conversion brings; bits are bits per weight."""

    source_format: str
    source_bits: float
    target: str
    target_bits: float
    double_quantization: bool
    significant: bool

    @property
    def text(self) -> str:
        """The loss in words, for the user who has to agree to it."""
        lines = [
            f"The source is {self.source_format} with {self.source_bits:.2f} bits per weight, the "
            f"target {self.target} with about {self.target_bits:.2f}."
        ]
        if self.double_quantization:
            lines.append(
                "Weights that are already quantized are quantized again; both losses add up. "
                "The original model is the better source."
            )
        elif self.target == "hf" and self.source_bits < _FLOAT_BITS:
            lines.append("What the source's quantization discarded does not come back.")
        return " ".join(lines)


def conversion_loss(source: Path, target: str, target_bits: float) -> ConversionLoss:
    """Describe what is lost by converting `source` to `target`; raise `InputError` when it is not a model."""
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
    """The model as a Hugging Face folder of plain weights: itself, or restored to `output`.

    A folder that was restored from the same source is reused; with `overwrite`, one of another
    source is replaced. Raises `InputError` when the source cannot be restored or `output` holds
    something else, and `ResourceError` while another process writes the folder.
    """
    stored = detect_quantization(source.path)
    if source.kind == "hf" and stored.format == "float":
        return source
    if source.kind == "hf" and stored.format not in ("gptq", "awq"):
        raise InputError(
            f"A {stored.format} checkpoint cannot be converted.",
            "GGUF, GPTQ and AWQ can.",
            "Use the model's original 16 bit checkpoint.",
        )
    check_output_folder(output.parent)
    lock = output.with_name(f".{output.name}.lock")
    with locked_file(lock, f"the folder {output.name}", remove=True):
        manifest = _reusable_manifest(source, output, overwrite=overwrite)
        if manifest is None:
            staging = output.with_name(f".{output.name}.part")
            own_folder(staging)
            shutil.rmtree(staging)
            manifest = restore_plain_weights(source, staging, name=source.name, session=session)
            if output.is_symlink():
                output.unlink()
            elif output.exists():
                _remove_folder(output)
            replace_durably(staging, output)
    provenance = restored_provenance(source, manifest.weights_file_type)
    return resolve_source(str(output), settings).model_copy(
        update={"name": source.name, "provenance": provenance}
    )


def _reusable_manifest(
    source: SourceModel, output: Path, *, overwrite: bool
) -> SourceManifest | None:
    """The manifest of the folder at `output` if restored from `source`; None if free to write."""
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
    """Rename it first, so that a half removed folder is never found under its name."""
    aside = folder.with_name(f".{folder.name}.old")
    own_folder(aside)
    shutil.rmtree(aside)
    folder.rename(aside)
    shutil.rmtree(aside)


def lineage(
    source: SourceModel, stored: StoredQuantization, loss: ConversionLoss
) -> dict[str, str]:
    """A converted artifact's origin, for its manifest."""
    return {
        "converted_from": stored.format,
        "converted_from_identity": source.identity,
        "converted_from_bits_per_weight": f"{loss.source_bits:.4f}",
        "double_quantization": str(loss.double_quantization).lower(),
    }
