"""`detailed_capacity`: copies that fit, counting KV cache and compute buffers."""

from collections.abc import Mapping
from functools import cached_property
from typing import ClassVar

from pydantic import Field

from quant_assets.capacity.heuristics.strategy import (
    ColumnType,
    GpuFacts,
    HeuristicStrategy,
    Value,
    capacity_columns,
    capacity_values,
)
from quant_assets.capacity.memory import (
    DEVICE_RESERVE_GB,
    Serving,
    copies_on_device,
    device_usable_gb,
    estimate_memory,
    weights_at_level,
)
from quant_assets.capacity.reference_models import reference_models


class DetailedCapacity(HeuristicStrategy):
    """Copies of the reference models that run side by side on a GPU.

    Every copy needs its weights at the level's effective bits, a KV cache for `batch` sequences of
    `context` tokens, and llama.cpp's compute buffers; `reserve_gb` of every device stays free.
    Columns are suffixed by the level if there are several.
    """

    name: ClassVar[str] = "detailed_capacity"
    inputs: ClassVar[tuple[str, ...]] = ("vram_gb", "devices", "form_factor")

    levels: tuple[str, ...] = Field(default=("Q4_K_M",), min_length=1)
    context: int = Field(default=4096, ge=1)
    batch: int = Field(default=1, ge=1)
    kv_type_k: str = "F16"
    kv_type_v: str = "F16"
    reserve_gb: float = Field(default=DEVICE_RESERVE_GB, ge=0)

    def columns(self) -> Mapping[str, ColumnType]:
        """The JSON column and one column per size and level."""
        return capacity_columns(self.name, list(self.needed_gb))

    def evaluate(self, facts: GpuFacts) -> Mapping[str, Value]:
        """Count the copies; null when the VRAM is unknown."""
        devices = facts.devices or 1
        usable_gb = (
            None
            if facts.vram_gb is None
            else device_usable_gb(
                facts.vram_gb / devices,
                unified=facts.form_factor == "soc",
                reserve_gb=self.reserve_gb,
            )
        )
        return capacity_values(
            self.name,
            {
                key: None if usable_gb is None else devices * copies_on_device(usable_gb, needed)
                for key, needed in self.needed_gb.items()
            },
        )

    @cached_property
    def needed_gb(self) -> Mapping[str, float]:
        """GB (10^9 bytes) per copy, by column key."""
        serving = Serving(
            context=self.context,
            batch=self.batch,
            kv_type_k=self.kv_type_k,
            kv_type_v=self.kv_type_v,
        )
        needed: dict[str, float] = {}
        for level in self.levels:
            for model in reference_models().values():
                if model.capacity_class is None:
                    continue
                weights = weights_at_level(model.shape, level)
                estimate = estimate_memory(model.name, model.shape, weights, serving)
                key = model.capacity_class
                if len(self.levels) > 1:
                    key = f"{key}_{weights.level}"
                needed[key] = estimate.total_bytes / 1e9
        return needed
