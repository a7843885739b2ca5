"""Trained models at hand: those that installed packages ship, and those that the user names."""

import importlib.metadata
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from quant_assets.errors import InputError
from quant_assets.formats.gguf_header import read_gguf_header
from quant_assets.models.inspection import inspect_model
from quant_assets.models.source import SourceModel, resolve_source
from quant_assets.quantize.conversion.float_source import dequantized_folder, is_quantized
from quant_assets.quantize.gguf.job import QuantizeGgufJob, quantize_gguf
from quant_assets.settings import Settings


class RealModel(NamedTuple):
    """A model with floating-point weights, which a quantized one is dequantized to."""

    source: SourceModel
    n_parameters: int


def packaged_models() -> list[str]:
    """The GGUF models that installed packages ship, as `package:<distribution>/<file>`.

    Files without weights, such as vocabularies, are left out.
    """
    found = {}
    for distribution in importlib.metadata.distributions():
        for file in distribution.files or ():
            path = Path(str(file.locate()))
            if path.suffix == ".gguf" and path.is_file() and _has_weights(path):
                found[f"package:{distribution.name}/{path.name}"] = path
    return sorted(found)


def _has_weights(path: Path) -> bool:
    try:
        return bool(read_gguf_header(path).tensors)
    except InputError:
        return False


def float_models(names: Sequence[str], settings: Settings) -> list[RealModel]:
    """The models named, each with floating-point weights: a quantized one is dequantized first.

    Raises what `resolve_source` raises, before anything is dequantized.
    """
    sources = [resolve_source(name, settings) for name in names]
    return [_float_model(source, settings) for source in sources]


def _float_model(source: SourceModel, settings: Settings) -> RealModel:
    n_parameters = inspect_model(source.path).n_parameters
    if is_quantized(source):
        source = dequantized_folder(source, source.name, settings)
    return RealModel(source, n_parameters)


def quantized(model: RealModel, level: str, folder: Path, threads: int) -> Path:
    """A new file of the model at `level` in `folder`, without loading it."""
    output = folder / f"{model.source.name}-{level}.gguf"
    quantize_gguf(
        QuantizeGgufJob(
            source=model.source.path,
            source_kind=model.source.kind,
            source_identity=model.source.identity,
            level=level,
            output=output,
            threads=threads,
            resume=False,
            validate_output=False,
        )
    )
    return output
