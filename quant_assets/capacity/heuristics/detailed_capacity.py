"""`detailed_capacity`: copies that fit, counting KV cache and compute buffers."""

from collections.abc import Mapping
from functools import cached_property
from typing import ClassVar

from pydantic import Field

from quant_assets.capacity.device_memory import DeviceBudget, device_budget, plain_budget
from quant_assets.capacity.heuristics.strategy import (
    ColumnType,
    GpuFacts,
    HeuristicStrategy,
    Value,
    capacity_columns,
    capacity_values,
)
from quant_assets.capacity.memory import Serving, estimate_memory, weights_at_level
from quant_assets.capacity.placement import CopyParts, copies_held, copy_parts
from quant_assets.capacity.reference_models import reference_models
from quant_assets.gpus.registry import BYTES_PER_NOMINAL_GB, load_registry


class DetailedCapacity(HeuristicStrategy):
    """Copies of the reference models that a GPU holds, as `estimate` counts them.

    Every copy needs its weights at the level's effective bits, a KV cache for `batch` sequences of
    `context` tokens, and llama.cpp's compute buffers, and keeps `reserve_gb` free (default: that of
    `data/placement.yaml`). A GPU of the registry has the memory that it has there, any other `vram_gb`.
    Columns are suffixed by the level if there are several.
    """

    name: ClassVar[str] = "detailed_capacity"
    inputs: ClassVar[tuple[str, ...]] = ("canonical_name", "vram_gb", "devices")

    levels: tuple[str, ...] = Field(default=("Q4_K_M",), min_length=1)
    context: int = Field(default=4096, ge=1)
    batch: int = Field(default=1, ge=1)
    kv_type_k: str = "F16"
    kv_type_v: str = "F16"
    reserve_gb: float | None = Field(default=None, ge=0)

    def columns(self) -> Mapping[str, ColumnType]:
        """The JSON column and one column per size and level."""
        return capacity_columns(self.name, list(self.parts))

    def evaluate(self, facts: GpuFacts) -> Mapping[str, Value]:
        """Count the copies; null when the VRAM is unknown."""
        held = self._devices(facts)
        return capacity_values(
            self.name,
            {
                key: None if held is None else copies_held(parts, *held)
                for key, parts in self.parts.items()
            },
        )

    def _devices(self, facts: GpuFacts) -> tuple[DeviceBudget, int] | None:
        """The budget of each device, and their number."""
        gpu = load_registry().by_name.get(facts.canonical_name or "")
        if gpu is not None:
            return device_budget(gpu, self.reserve_gb), gpu.devices
        if facts.vram_gb is None:
            return None
        devices = facts.devices or 1
        device_bytes = round(facts.vram_gb / devices * BYTES_PER_NOMINAL_GB)
        return plain_budget(device_bytes, self.reserve_gb), devices

    @cached_property
    def parts(self) -> Mapping[str, CopyParts]:
        """What a copy needs, by column key."""
        serving = Serving(
            context=self.context,
            batch=self.batch,
            kv_type_k=self.kv_type_k,
            kv_type_v=self.kv_type_v,
        )
        found: dict[str, CopyParts] = {}
        for level in self.levels:
            for model in reference_models().values():
                if model.capacity_class is None:
                    continue
                weights = weights_at_level(model.shape, level)
                key = model.capacity_class
                if len(self.levels) > 1:
                    key = f"{key}_{weights.level}"
                estimate = estimate_memory(model.name, model.shape, weights, serving)
                found[key] = copy_parts(estimate)
        return found
