"""The tensor types of GGUF files: the block layout of each, and its exact bits per weight.

Block sizes are those of llama.cpp's block structs (ggml/src/ggml-common.h); the numbers are those
of `enum ggml_type` (ggml/include/ggml.h).
"""

from typing import Final

from pydantic import BaseModel, ConfigDict

from quant_assets.errors import InputError


class GgmlType(BaseModel):
    """One tensor type: `block_size` weights take `block_bytes` bytes.

    `nominal_bits` is the figure usually quoted, where it differs from the exact one.
    `when_to_choose` is one line of advice.
    """

    model_config = ConfigDict(frozen=True)

    name: str
    number: int
    block_size: int
    block_bytes: int
    nominal_bits: float
    when_to_choose: str

    @property
    def bits_per_weight(self) -> float:
        """Exact bits of one weight, its share of the block's scales and minima included."""
        return 8 * self.block_bytes / self.block_size

    def row_bytes(self, n_elements: int) -> int:
        """Bytes of a row of `n_elements` numbers, in whole blocks."""
        return -(-n_elements // self.block_size) * self.block_bytes


def _type(
    name: str, number: int, block: tuple[int, int], nominal_bits: float, when_to_choose: str
) -> GgmlType:
    return GgmlType(
        name=name,
        number=number,
        block_size=block[0],
        block_bytes=block[1],
        nominal_bits=nominal_bits,
        when_to_choose=when_to_choose,
    )


_INTERNAL = "Internal to llama.cpp's arithmetic; never the type of a weight in a file."
_METADATA = "For index tensors, never for weights."

GGML_TYPES: Final[dict[str, GgmlType]] = {
    entry.name: entry
    for entry in (
        _type("F32", 0, (1, 4), 32.0, "Reference precision; norms and biases stay in it."),
        _type("F16", 1, (1, 2), 16.0, "The baseline that every quantization is compared with."),
        _type("BF16", 30, (1, 2), 16.0, "Lossless for models trained in bfloat16."),
        _type("Q8_0", 8, (32, 34), 8.0, "Practically lossless, half of F16; good KV cache."),
        _type("Q6_K", 14, (256, 210), 6.5, "Near-lossless where Q8_0 is just too large."),
        _type("Q5_K", 13, (256, 176), 5.5, "Better quality than Q4_K where memory allows it."),
        _type("Q5_1", 7, (32, 24), 6.0, "Rows that K-quants do not divide, asymmetric weights."),
        _type("Q5_0", 6, (32, 22), 5.5, "Rows that K-quants do not divide (multiples of 32)."),
        _type("Q4_K", 12, (256, 144), 4.5, "The usual compromise between size and quality."),
        _type("Q4_1", 3, (32, 20), 5.0, "Asymmetric weights in rows that are multiples of 32."),
        _type("Q4_0", 2, (32, 18), 4.5, "Fastest 4-bit kernels on CPUs; coarser than Q4_K."),
        _type("IQ4_NL", 20, (32, 18), 4.5, "Better than Q4_0 at its size, slower on CPUs."),
        _type("IQ4_XS", 23, (256, 136), 4.25, "Smaller than Q4_K at nearly its quality."),
        _type("Q3_K", 11, (256, 110), 3.4, "When 4 bits do not fit and there is no imatrix."),
        _type("IQ3_S", 21, (256, 110), 3.4, "Better than Q3_K at its size, slower on CPUs."),
        _type("IQ3_XXS", 18, (256, 98), 3.1, "About 3 bits, with an importance matrix."),
        _type("Q2_K", 10, (256, 84), 2.6, "Smallest K-quant; expect a clear quality loss."),
        _type("IQ2_S", 22, (256, 82), 2.5, "About 2.5 bits, with an importance matrix."),
        _type("IQ2_XS", 17, (256, 74), 2.3, "Very large models only, with an importance matrix."),
        _type("IQ2_XXS", 16, (256, 66), 2.1, "Very large models only, with an importance matrix."),
        _type(
            "IQ1_M", 29, (256, 56), 1.75, "A last resort that stays coherent, large models only."
        ),
        _type("IQ1_S", 19, (256, 50), 1.6, "A last resort, for very large models only."),
        _type("TQ2_0", 35, (256, 66), 2.0, "Models trained with ternary weights only, faster."),
        _type("TQ1_0", 34, (256, 54), 1.7, "Models trained with ternary weights only, smaller."),
        _type("MXFP4", 39, (32, 17), 4.25, "Models released in MXFP4, such as gpt-oss."),
        _type("NVFP4", 40, (64, 36), 4.5, "Models released in NVFP4."),
        _type("Q1_0", 41, (128, 18), 1.1, "Models trained with binary weights only."),
        _type("Q2_0", 42, (64, 18), 2.25, "Models trained with 2-bit weights only."),
        _type("Q8_1", 9, (32, 40), 10.0, _INTERNAL),
        _type("Q8_K", 15, (256, 292), 9.1, _INTERNAL),
        _type("I8", 24, (1, 1), 8.0, _METADATA),
        _type("I16", 25, (1, 2), 16.0, _METADATA),
        _type("I32", 26, (1, 4), 32.0, _METADATA),
        _type("I64", 27, (1, 8), 64.0, _METADATA),
        _type("F64", 28, (1, 8), 64.0, _METADATA),
    )
}

WEIGHT_TYPES: Final[tuple[GgmlType, ...]] = tuple(
    entry for entry in GGML_TYPES.values() if entry.when_to_choose not in (_INTERNAL, _METADATA)
)
"""The types that weights can have, in the order in which to consider them."""

_BY_NUMBER: Final = {entry.number: entry for entry in GGML_TYPES.values()}


def ggml_type(name: str) -> GgmlType:
    """The type called `name`, in any case; raises `InputError` for an unknown one."""
    found = GGML_TYPES.get(name.strip().upper())
    if found is None:
        raise InputError(
            f"There is no tensor type {name!r}.",
            "It is not among the types of the pinned llama.cpp.",
            f"Use one of {', '.join(entry.name for entry in WEIGHT_TYPES)}.",
        )
    return found


def ggml_type_of_number(number: int) -> GgmlType | None:
    """The type whose `enum ggml_type` value is `number`, or None."""
    return _BY_NUMBER.get(number)
