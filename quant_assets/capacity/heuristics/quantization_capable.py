"""`quantization_capable`: can the card host several quantized models in isolation?"""

from collections.abc import Mapping
from typing import ClassVar

from pydantic import Field

from quant_assets.capacity.heuristics.strategy import (
    ColumnType,
    GpuFacts,
    HeuristicStrategy,
    Value,
)


class QuantizationCapable(HeuristicStrategy):
    """True when VRAM, board power and MIG all meet their thresholds.

    A single failed threshold makes it false; otherwise it is null while a fact is unknown.
    """

    name: ClassVar[str] = "quantization_capable"
    inputs: ClassVar[tuple[str, ...]] = ("vram_gb", "tdp_w", "mig_instances")

    min_vram_gb: float = Field(default=24.0, ge=0)
    max_tdp_w: float = Field(default=300.0, gt=0)
    min_mig_instances: int = Field(default=1, ge=0, le=7)

    def columns(self) -> Mapping[str, ColumnType]:
        """One column of true, false or null."""
        return {self.name: "boolean"}

    def evaluate(self, facts: GpuFacts) -> Mapping[str, Value]:
        """Compare one GPU with the thresholds."""
        verdicts = [
            None if facts.vram_gb is None else facts.vram_gb >= self.min_vram_gb,
            None if facts.tdp_w is None else facts.tdp_w <= self.max_tdp_w,
        ]
        if self.min_mig_instances:
            instances = facts.mig_instances
            verdicts.append(None if instances is None else instances >= self.min_mig_instances)
        if False in verdicts:
            return {self.name: False}
        return {self.name: None if None in verdicts else True}
