"""Memory of a GPU's devices that models can use: one setting and one rule for every answer."""

from functools import lru_cache
from pathlib import Path
from typing import Annotated, Final, NamedTuple, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from quant_assets.errors import InputError
from quant_assets.gpus.registry import Gpu, Vendor
from quant_assets.settings import get_settings

_SYSTEM_MEMORY: Final = "LPDDR"
_UNITED_FAMILIES: Final = ("Instinct MI300A",)
"""Superchips whose CPU has no memory of its own, beside those with LPDDR."""


class SystemShare(BaseModel):
    """The share of shared memory that models may use, of machines with up to `up_to_gb`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    up_to_gb: float | None = Field(default=None, gt=0)
    share: float = Field(gt=0, le=1)


class EfficiencyRange(BaseModel):
    """Shares of a peak that are reached: low, usual and high."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    low: float = Field(gt=0, le=1)
    middle: float = Field(gt=0, le=1)
    high: float = Field(gt=0, le=1)

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if not self.low <= self.middle <= self.high:
            raise ValueError("low, middle and high are not in ascending order")
        return self


class PlacementSettings(BaseModel):
    """The figures of `data/placement.yaml`, which states the basis of each. GB are 10^9 bytes.

    `shared_memory` needs an entry without `up_to_gb` last.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    reserve_gb: float = Field(ge=0)
    shared_memory: dict[Vendor, Annotated[tuple[SystemShare, ...], Field(min_length=1)]]
    link_gb_s: float = Field(gt=0)
    link_latency_us: float = Field(ge=0)
    host_bandwidth_gb_s: float = Field(gt=0)
    host_efficiency: EfficiencyRange

    @model_validator(mode="after")
    def _every_size_is_covered(self) -> Self:
        for vendor, shares in self.shared_memory.items():
            if shares[-1].up_to_gb is not None:
                raise ValueError(f"the last share of {vendor} has a limit, `up_to_gb`")
        return self


class DeviceBudget(NamedTuple):
    """Bytes of one device for models, and those that every copy on it keeps free."""

    capacity_bytes: int
    reserve_bytes: int

    @property
    def usable_bytes(self) -> int:
        """Bytes that a single copy can fill, never below 0."""
        return max(0, self.capacity_bytes - self.reserve_bytes)


def device_budget(gpu: Gpu, reserve_gb: float | None = None) -> DeviceBudget:
    """The budget of each device of `gpu`; `reserve_gb` replaces the setting's.

    Of memory that it shares with the system a GPU has a share instead, without a reserve.
    """
    settings = placement_settings()
    capacity_bytes = gpu.device_memory_bytes
    if shares_memory_with_system(gpu):
        for entry in settings.shared_memory[gpu.vendor]:
            if entry.up_to_gb is None or gpu.vram_gb <= entry.up_to_gb:
                return DeviceBudget(round(capacity_bytes * entry.share), 0)
    return plain_budget(capacity_bytes, reserve_gb)


def plain_budget(capacity_bytes: int, reserve_gb: float | None = None) -> DeviceBudget:
    """The budget of a device with memory of its own."""
    if reserve_gb is None:
        reserve_gb = placement_settings().reserve_gb
    return DeviceBudget(capacity_bytes, round(reserve_gb * 1e9))


def shares_memory_with_system(gpu: Gpu) -> bool:
    """Whether the GPU has no memory of its own."""
    if gpu.form_factor == "soc" or gpu.family in _UNITED_FAMILIES:
        return True
    return gpu.form_factor in ("superchip", "module") and gpu.memory_type.startswith(_SYSTEM_MEMORY)


def placement_settings(path: Path | None = None) -> PlacementSettings:
    """The settings in `path` (default: `placement.yaml` in the data folder); cached by mtime.

    Raises `InputError` naming the file when it is missing or invalid.
    """
    file = (path or get_settings().data / "placement.yaml").resolve()
    try:
        return _load(file, file.stat().st_mtime_ns)
    except (OSError, yaml.YAMLError, ValidationError) as error:
        raise InputError(
            f"The placement settings {file} cannot be used.",
            " ".join(str(error).split()),
            "Correct or restore the file.",
        ) from error


@lru_cache(maxsize=4)
def _load(file: Path, modified_ns: int) -> PlacementSettings:  # noqa: ARG001, part of the cache's key
    return PlacementSettings.model_validate(yaml.safe_load(file.read_text(encoding="utf-8")))
