"""`quantization_capacity`: copies of common model sizes that fit, by simple arithmetic."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import floor
from typing import Annotated, ClassVar, Final

from pydantic import Field

from quant_assets.capacity.heuristics.strategy import (
    ColumnType,
    GpuFacts,
    HeuristicStrategy,
    Value,
    capacity_columns,
    capacity_values,
)

BASE_BITS: Final = 4
MODEL_SIZES_GB: Final[Mapping[str, float]] = {"7b": 3.5, "13b": 6.5, "70b": 35.0}
"""Weights at 4 bits: one byte holds two of them. `data/heuristics.yaml` says why 70B counts as 35."""

_ROUNDING = 1e-9  # (4.6 - 1.1) / 3.5 is slightly below 1 in binary arithmetic


@dataclass(frozen=True)
class ModelSlot:
    """Room for one model: a size at a bit width, with the GB (10^9 bytes) of its weights."""

    key: str
    """Its key in the JSON column and the suffix of its own column, such as `7b` or `7b_8bit`."""
    size: str
    bits: int
    weights_gb: float

    @property
    def label(self) -> str:
        """The slot in words, such as "7B at 4 bits"."""
        return f"{self.size.upper()} at {self.bits} bits"


class QuantizationCapacity(HeuristicStrategy):
    """floor((VRAM - overhead) / model size) per size and bit width, on each device.

    `overhead_gb`, 1 to 2, is what the system, the kernels and the runtime occupy on every device; it
    is subtracted once, before the division. `model_sizes_gb` are sizes at 4 bits; other widths scale
    them. Columns are suffixed by the bits (`quantization_capacity.7b_8bit`) if there are several.
    """

    name: ClassVar[str] = "quantization_capacity"
    inputs: ClassVar[tuple[str, ...]] = ("vram_gb", "devices")

    bits: tuple[Annotated[int, Field(ge=1, le=32)], ...] = Field(default=(BASE_BITS,), min_length=1)
    overhead_gb: float = Field(default=2.0, ge=1.0, le=2.0)
    model_sizes_gb: dict[str, Annotated[float, Field(gt=0)]] = Field(
        default=dict(MODEL_SIZES_GB), min_length=1
    )

    def columns(self) -> Mapping[str, ColumnType]:
        """The JSON column and one column per size and bit width."""
        return capacity_columns(self.name, [slot.key for slot in self.slots])

    def evaluate(self, facts: GpuFacts) -> Mapping[str, Value]:
        """Count the copies; null when the VRAM is unknown, 0 at or under the overhead."""
        devices = facts.devices or 1
        return capacity_values(
            self.name,
            {
                slot.key: None
                if facts.vram_gb is None
                else devices * self._copies(facts.vram_gb / devices, slot.weights_gb)
                for slot in self.slots
            },
        )

    def _copies(self, vram_gb: float, size_gb: float) -> int:
        return max(0, floor((vram_gb - self.overhead_gb) / size_gb + _ROUNDING))

    @property
    def slots(self) -> Sequence[ModelSlot]:
        """Every size at every bit width, in the order of the columns."""
        return [
            ModelSlot(
                key=size if len(self.bits) == 1 else f"{size}_{bits}bit",
                size=size,
                bits=bits,
                weights_gb=size_gb * bits / BASE_BITS,
            )
            for bits in self.bits
            for size, size_gb in self.model_sizes_gb.items()
        ]
