"""Every quantization that the project writes, with exact and nominal bits per weight."""

from functools import cache
from typing import Final, Literal

from pydantic import BaseModel, ConfigDict

from quant_assets.capacity.reference_models import DEFAULT_REFERENCE, mixture_bits
from quant_assets.errors import InputError
from quant_assets.formats.ggml_types import GGML_TYPES, WEIGHT_TYPES
from quant_assets.formats.gguf_levels import GGUF_LEVELS
from quant_assets.formats.group_quantization import (
    GROUP_QUANTIZATIONS,
    GroupQuantization,
    parse_group_quantization,
)

Kind = Literal["float", "gguf_tensor", "gguf_level", "gptq", "awq"]

F32_BITS: Final = 32.0
F16_BITS: Final = 16.0

_FLOATS: Final = {"F32", "F16", "BF16"}
_LEVEL_ADVICE: Final = {
    "Q5_K_M": "Close to Q6_K, a little smaller.",
    "Q5_K_S": "Q5_K throughout; slightly smaller than Q5_K_M.",
    "Q4_K_M": "The default choice: 4-bit with its most sensitive tensors in Q6_K.",
    "Q4_K_S": "Smaller than Q4_K_M at a small loss.",
    "IQ4_XS": "The smallest good 4-bit level; slower on CPUs.",
    "Q3_K_L": "The best Q3_K; when no 4-bit level fits.",
    "Q3_K_M": "When no 4-bit level fits and there is no importance matrix.",
    "Q3_K_S": "The smallest useful level without an importance matrix.",
    "IQ3_M": "Better than Q3_K_M at a smaller size; slower on CPUs.",
    "IQ3_XS": "About 3.3 bits, with an importance matrix.",
    "Q2_K": "Large models only; expect a clear quality loss.",
    "Q2_K_S": "Large models only, with an importance matrix.",
    "IQ2_M": "The best level under 3 bits, with an importance matrix.",
}
"""Advice for mixed levels; a level of a single type uses the advice for that type."""


class QuantizationType(BaseModel):
    """One quantization: a tensor type, a GGUF level, or GPTQ or AWQ settings.

    `exact_bits_per_weight` follows from the block layout; for a mixed level it is the average
    of llama.cpp's mixture on the model `measured_on`. `nominal_bits_per_weight` is the figure
    usually quoted.
    """

    model_config = ConfigDict(frozen=True)

    name: str
    kind: Kind
    exact_bits_per_weight: float
    nominal_bits_per_weight: float
    when_to_choose: str
    measured_on: str | None = None

    @property
    def compression_vs_f32(self) -> float:
        """Compression ratio against F32, by exact bits."""
        return F32_BITS / self.exact_bits_per_weight

    @property
    def compression_vs_f16(self) -> float:
        """Compression ratio against F16, by exact bits."""
        return F16_BITS / self.exact_bits_per_weight

    def size_gb(self, n_parameters: float) -> float:
        """Estimated size of `n_parameters` weights in GB (10^9 bytes), by exact bits."""
        return n_parameters * self.exact_bits_per_weight / 8 / 1e9

    def nominal_size_gb(self, n_parameters: float) -> float:
        """Like `size_gb`, by nominal bits, as sizes are commonly quoted."""
        return n_parameters * self.nominal_bits_per_weight / 8 / 1e9


@cache
def quantization_types() -> tuple[QuantizationType, ...]:
    """All quantizations: floats and GGUF tensor types, then GGUF levels, then GPTQ and AWQ."""
    return (*_tensor_types(), *_levels(), *map(_group_type, GROUP_QUANTIZATIONS))


def _tensor_types() -> list[QuantizationType]:
    return [
        QuantizationType(
            name=entry.name,
            kind="float" if entry.name in _FLOATS else "gguf_tensor",
            exact_bits_per_weight=entry.bits_per_weight,
            nominal_bits_per_weight=entry.nominal_bits,
            when_to_choose=entry.when_to_choose,
        )
        for entry in WEIGHT_TYPES
    ]


def _levels() -> list[QuantizationType]:
    types = []
    for level in GGUF_LEVELS:
        if level.name in _FLOATS:
            continue
        bits = mixture_bits(level.name)
        # A level named after a type uses that type for most tensors.
        base = GGML_TYPES.get(level.name)
        types.append(
            QuantizationType(
                name=level.name,
                kind="gguf_level",
                exact_bits_per_weight=bits,
                nominal_bits_per_weight=base.nominal_bits if base else round(bits, 1),
                when_to_choose=_LEVEL_ADVICE.get(level.name)
                or GGML_TYPES[level.name].when_to_choose,
                measured_on=DEFAULT_REFERENCE,
            )
        )
    return types


def _group_type(group: GroupQuantization) -> QuantizationType:
    return QuantizationType(
        name=group.name,
        kind=group.method,
        exact_bits_per_weight=group.bits_per_weight(),
        nominal_bits_per_weight=float(group.bits),
        when_to_choose=group.when_to_choose,
    )


def quantization_type(name: str, kind: Kind | None = None) -> QuantizationType:
    """The quantization called `name`: a tensor type, a GGUF level, or `gptq-4bit-g128` and the like.

    Some levels share the name of a tensor type (`Q4_0`, `Q2_K`); without a `kind` the type wins.
    Raises `InputError` for an unknown name.
    """
    group = parse_group_quantization(name)
    if group is not None:
        return _group_type(group)
    key = name.strip().upper().replace("-", "_")
    for entry in quantization_types():
        if entry.name == key and kind in (None, entry.kind):
            return entry
    raise InputError(
        f"There is no quantization {name!r}.",
        "It is neither a GGUF type or level nor a GPTQ or AWQ name.",
        "`quant-assets types` lists them.",
    )
