"""GPTQ and AWQ: weights packed in groups of a row, each group with a scale and a zero point.

Layouts: GPTQ (`qweight`, `qzeros`, `scales`, `g_idx`) and AWQ's GEMM format (the same without
`g_idx`). Scales are FP16; weights and zero points are packed into 32-bit integers. `g_idx` holds
one 32-bit group index per input of a matrix; GPTQ files carry it with and without act-order.
"""

import re
from typing import Final

from pydantic import BaseModel, ConfigDict

from quant_assets.errors import InputError
from quant_assets.formats.artifact_formats import GroupwiseFormat

PACKED_PARTS: Final = ("qweight", "qzeros", "scales", "g_idx")
"""Suffixes of the tensors that together store one matrix."""

PER_CHANNEL: Final = -1
"""The group size for one group per whole row."""

GPTQ_BITS: Final = (2, 3, 4, 8)
AWQ_BITS: Final = (4,)
GROUP_SIZES: Final = (32, 64, 128, PER_CHANNEL)
DEFAULT_GROUP_SIZE: Final = 128
UNQUANTIZED_BITS: Final = 16
"""Embeddings, output head and norms of a GPTQ or AWQ model stay FP16 or BF16."""

_SCALE_BITS = 16
_INDEX_BITS = 32
_TYPICAL_DIMENSION = 4096
_NAME = re.compile(r"^(gptq|awq)[-_: ]?(\d)[-_ ]?(?:bits?|b)?(?:[-_: ]?(?:g(\d+|-1)|(channel)))?$")


class GroupQuantization(BaseModel):
    """One way to quantize by groups, such as GPTQ with 4 bits and groups of 128 weights."""

    model_config = ConfigDict(frozen=True)

    method: GroupwiseFormat
    bits: int
    group_size: int = DEFAULT_GROUP_SIZE

    @property
    def name(self) -> str:
        """The name, such as `gptq-4bit-g128`."""
        group = "channel" if self.group_size == PER_CHANNEL else f"g{self.group_size}"
        return f"{self.method}-{self.bits}bit-{group}"

    @property
    def when_to_choose(self) -> str:
        """One line of advice."""
        if self.method == "awq":
            return "4-bit serving on GPUs (vLLM and others); robust with little calibration."
        return {
            2: "Research; expect a clear quality loss.",
            3: "When 4 bits do not fit; check the quality.",
            4: "4-bit serving on GPUs; calibrate on text from your own domain.",
            8: "Practically lossless serving on GPUs without FP8.",
        }[self.bits]

    def bits_per_weight(
        self, in_features: int = _TYPICAL_DIMENSION, out_features: int = _TYPICAL_DIMENSION
    ) -> float:
        """Exact bits of one weight of an `in_features` x `out_features` matrix.

        Counts the weight, its share of its group's scale and zero point, and GPTQ's group index.
        """
        group = in_features if self.group_size == PER_CHANNEL else self.group_size
        index_bits = _INDEX_BITS / out_features if self.method == "gptq" else 0.0
        return self.bits + (_SCALE_BITS + self.bits) / group + index_bits


def parse_group_quantization(text: str) -> GroupQuantization | None:
    """Parse a name such as `gptq-4bit-g128`, `awq-4bit` or `gptq:8:g64`; None for any other name.

    Raises `InputError` for bits or a group size that the method does not support.
    """
    match = _NAME.match(text.strip().casefold())
    if match is None:
        return None
    method: GroupwiseFormat = "gptq" if match[1] == "gptq" else "awq"
    bits = int(match[2])
    group_size = PER_CHANNEL if match[4] else int(match[3] or DEFAULT_GROUP_SIZE)
    return group_quantization(method, bits, group_size)


def group_quantization(method: GroupwiseFormat, bits: int, group_size: int) -> GroupQuantization:
    """A checked quantization; raises `InputError` for unsupported bits or group sizes."""
    allowed = GPTQ_BITS if method == "gptq" else AWQ_BITS
    quantization = GroupQuantization(method=method, bits=bits, group_size=group_size)
    if bits not in allowed or group_size not in GROUP_SIZES:
        raise InputError(
            f"There is no quantization {quantization.name!r}.",
            f"{method.upper()} supports {' or '.join(map(str, allowed))} bits and groups of "
            f"{', '.join(str(size) for size in GROUP_SIZES if size > 0)} weights or a whole row.",
            f"Use a name such as {method}-4bit-g128 (--bits 4 --group-size 128).",
        )
    return quantization


GROUP_QUANTIZATIONS: Final[tuple[GroupQuantization, ...]] = (
    *(
        GroupQuantization(method="gptq", bits=bits, group_size=group_size)
        for bits in reversed(GPTQ_BITS)
        for group_size in GROUP_SIZES
    ),
    *(
        GroupQuantization(method="awq", bits=bits, group_size=group_size)
        for bits in AWQ_BITS
        for group_size in GROUP_SIZES
        if group_size != PER_CHANNEL
    ),
)
