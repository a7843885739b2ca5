"""`QuantType`: the seven best-known GGUF types by their nominal figures, exact ones beside them.

Nominal bits are those people quote and size models by; `QuantizationType` has every type and level
with exact bits.
"""

from enum import Enum

from quant_assets.capacity.quantization_types import (
    F32_BITS,
    QuantizationType,
    quantization_type,
)


class QuantType(Enum):
    """A type of quantized or float weights, by its name in GGUF files."""

    Q4_0 = "Q4_0"
    Q4_K = "Q4_K"
    Q5_K = "Q5_K"
    Q6_K = "Q6_K"
    Q8_0 = "Q8_0"
    F16 = "F16"
    F32 = "F32"

    @property
    def exact(self) -> QuantizationType:
        """The same type with its exact bits, which its block layout gives."""
        return quantization_type(self.value)

    def bits_per_weight(self) -> float:
        """Nominal bits per weight, as commonly quoted (8.0 for Q8_0, whose blocks take 8.5)."""
        return self.exact.nominal_bits_per_weight

    def exact_bits_per_weight(self) -> float:
        """Bits per weight with the scales and minima of its blocks."""
        return self.exact.exact_bits_per_weight

    def compression_ratio(self) -> float:
        """How many times smaller than F32, by nominal bits."""
        return F32_BITS / self.bits_per_weight()

    def exact_compression_ratio(self) -> float:
        """How many times smaller than F32, by exact bits."""
        return self.exact.compression_vs_f32


def estimate_memory_gb(params_billions: float, quant: QuantType) -> float:
    """Memory of the weights alone in GB (10^9 bytes), by nominal bits.

    `params_billions` is in 10^9 parameters. `quant-assets estimate` adds KV cache and buffers, and
    counts tensors exactly.
    """
    return params_billions * quant.bits_per_weight() / 8


def exact_memory_gb(params_billions: float, quant: QuantType) -> float:
    """The same by exact bits."""
    return params_billions * quant.exact_bits_per_weight() / 8
