"""How a model on disk is already quantized, read from its headers alone.

The one reader of `quantization_config` in config.json, and of the tensor types of a GGUF file.
"""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, Literal

from pydantic import BaseModel, ConfigDict

from quant_assets.errors import InputError
from quant_assets.formats.artifact_formats import GroupwiseFormat
from quant_assets.formats.ggml_types import GGML_TYPES
from quant_assets.formats.gguf_header import read_gguf_header, require_tensors
from quant_assets.formats.group_quantization import GPTQ_BITS, PER_CHANNEL
from quant_assets.models.hf_config import read_config, short, text_config

StoredFormat = Literal["float", "gguf", "gptq", "awq", "fp8", "bitsandbytes"]
StoredMethod = Literal["none", "int8", "int4", "fp8"]

FLOAT_BITS: Final = 16

_KEY: Final = "quantization_config"

_FORMATS: Final[Mapping[str, StoredFormat]] = {
    "gptq": "gptq",
    "awq": "awq",
    "fp8": "fp8",
    "bitsandbytes": "bitsandbytes",
}


class StoredQuantization(BaseModel):
    """How a model on disk is quantized: its format, the intent it corresponds to, and its bits."""

    model_config = ConfigDict(frozen=True)

    format: StoredFormat
    method: StoredMethod
    bits: int


class QuantizationConfig(BaseModel):
    """`quantization_config` of a config.json, as far as it is usable.

    `quant_method` is in lower case, empty where it is missing. `bits` and `group_size` are None
    where they are missing or impossible.
    """

    model_config = ConfigDict(frozen=True)

    quant_method: str
    bits: int | None
    group_size: int | None


class GroupwiseConfig(BaseModel):
    """The checked `quantization_config` of a GPTQ or AWQ folder.

    `zero_points_offset` is what a reader adds to the stored zero points: GPTQ files store them
    minus one, except in the format `gptq_v2`; AWQ files store them as they are.
    """

    model_config = ConfigDict(frozen=True)

    method: GroupwiseFormat
    bits: int
    group_size: int
    symmetric: bool
    zero_points_offset: int


FLOAT: Final = StoredQuantization(format="float", method="none", bits=FLOAT_BITS)
"""A model that is not quantized."""


def quantization_config(config: Mapping[str, Any]) -> QuantizationConfig | None:
    """The `quantization_config` of a parsed config.json; None for a model without one."""
    raw = _raw(config)
    if raw is None:
        return None
    bits = _declared_bits(raw)
    group_size = raw.get("group_size")
    valid_group = type(group_size) is int and (group_size > 0 or group_size == PER_CHANNEL)
    quant_method = str(raw.get("quant_method", "")).lower()
    if quant_method == "bitsandbytes":
        bits = 4 if raw.get("load_in_4bit") else 8
    return QuantizationConfig(
        quant_method=quant_method,
        bits=bits if type(bits) is int and 0 < bits <= FLOAT_BITS else None,
        group_size=group_size if valid_group else None,
    )


def detect_quantization(model: Path) -> StoredQuantization:
    """How the Hugging Face folder or GGUF file `model` is quantized.

    A GGUF counts as int4 below 6 bits and as int8 below 10 bits of the type that holds most of its
    weights. Raises `InputError` when the files cannot be read or the method is unknown.
    """
    if model.is_file():
        return _detect_gguf(model)
    found = quantization_config(read_config(model))
    if found is None:
        return FLOAT
    stored = _FORMATS.get(found.quant_method)
    if stored == "fp8":
        return StoredQuantization(format="fp8", method="fp8", bits=8)
    if stored is None or found.bits is None:
        raise InputError(
            f"The quantization of {model} is not supported.",
            f"Its config.json declares quant_method {short(found.quant_method)}.",
            "Name the method instead of auto.",
        )
    method: StoredMethod = "int8" if found.bits == 8 else "int4"
    return StoredQuantization(format=stored, method=method, bits=found.bits)


def groupwise_config(folder: Path) -> GroupwiseConfig:
    """The checked `quantization_config` of a GPTQ or AWQ folder.

    Raises `InputError` for any other folder, and for bits or a group size that neither method has.
    """
    config = read_config(folder)
    found, raw = quantization_config(config), _raw(config) or {}
    if found is None or found.quant_method not in ("gptq", "awq"):
        raise InputError(
            f"{folder} is not a GPTQ or AWQ folder.",
            "Its config.json has no quantization_config for either.",
            "Give the folder of a GPTQ or AWQ artifact, or a GGUF file.",
        )
    method: GroupwiseFormat = "gptq" if found.quant_method == "gptq" else "awq"
    if found.bits not in GPTQ_BITS or found.group_size is None:
        raise InputError(
            f"The quantization_config of {folder} is not a valid {method.upper()} configuration.",
            f"Its bits are {short(_declared_bits(raw))} (of {', '.join(map(str, GPTQ_BITS))}) and its "
            f"group_size is {short(raw.get('group_size'))} (at least 1, or -1 for a whole row).",
            "Give the folder of a GPTQ or AWQ artifact, unchanged.",
        )
    minus_one = method == "gptq" and raw.get("checkpoint_format") != "gptq_v2"
    return GroupwiseConfig(
        method=method,
        bits=found.bits,
        group_size=found.group_size,
        symmetric=bool(raw.get("sym")),
        zero_points_offset=1 if minus_one else 0,
    )


def without_quantization(config: Mapping[str, Any]) -> dict[str, Any]:
    """A parsed config.json as that of a model that is not quantized."""
    kept = {name: value for name, value in config.items() if name != _KEY}
    if text := text_config(config):
        kept["text_config"] = {name: value for name, value in text.items() if name != _KEY}
    return kept


def _declared_bits(raw: Mapping[str, Any]) -> Any:
    return raw.get("bits") or raw.get("w_bit")


def _raw(config: Mapping[str, Any]) -> dict[str, Any] | None:
    for part in (config, text_config(config)):
        if isinstance(found := part.get(_KEY), dict):
            return found
    return None


def _detect_gguf(file: Path) -> StoredQuantization:
    header = read_gguf_header(file)
    require_tensors(header, file)
    n_elements: Counter[str] = Counter()
    for tensor in header.tensors:
        n_elements[tensor.type_name] += tensor.n_elements
    bits = GGML_TYPES[n_elements.most_common(1)[0][0]].bits_per_weight
    method: StoredMethod = "int4" if bits < 6 else "int8" if bits < 10 else "none"
    return StoredQuantization(format="gguf", method=method, bits=round(bits))
