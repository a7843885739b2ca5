"""The GPU registry: specifications of every card, from one validated YAML file.

Names are looked up by their key (`name_key`), which ignores case, spaces, punctuation and vendor
names, and nothing else. A family ("A100") groups the cards that share a name and differ in memory or
form factor; its bare name is an alias only if it means a single card.
"""

import re
from collections.abc import Mapping
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Annotated, Final, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from quant_assets.errors import InputError
from quant_assets.settings import get_settings

Vendor = Literal["NVIDIA", "AMD", "Intel", "Apple"]
Segment = Literal["data_center", "workstation", "consumer", "soc"]
FormFactor = Literal["pcie", "sxm", "oam", "superchip", "module", "soc", "laptop"]

_MAKER_WORDS = re.compile(r"\b(?:nvidia|geforce|tesla|amd|ati|intel|apple)\b|\((?:r|tm)\)|[®™]")
_GIGABYTES = re.compile(r"(\d)\s*gb?\b")
_SEPARATORS = re.compile(r"[^a-z0-9.]+")

BYTES_PER_NOMINAL_GB: Final = 2**30
"""Memory is sold in GB of 2^30 bytes."""

_USUAL_FP32_LANES = 128
"""NVIDIA since Maxwell except `_FP32_LANES`; Intel's Xe cores; Apple's GPU cores."""
_GCN_FP32_LANES = 64
"""Of a compute unit, from GCN to RDNA 4 and CDNA 4."""
_FP32_LANES = {"3.5": 192, "3.7": 192, "6.0": 64, "7.0": 64, "7.5": 64, "8.0": 64}
"""By compute capability: CUDA C++ Programming Guide, "Arithmetic Instructions"."""

Watts = Annotated[int, Field(ge=5, le=3000)]


class Gpu(BaseModel):
    """A GPU as sold: a chip with one memory size in one form factor.

    Figures that the vendor does not publish are None, never a guess. GB are as sold (a "24 GB"
    card); throughput is dense (without sparsity), on tensor or matrix units if the chip has them.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    canonical_name: str = Field(min_length=2)
    vendor: Vendor
    family: str = Field(min_length=2)
    """The name without memory size and form factor, shared by all variants of a card."""
    architecture: str
    segment: Segment
    form_factor: FormFactor
    release_year: int = Field(ge=2012, le=2027)
    aliases: tuple[str, ...] = ()
    driver_names: tuple[str, ...] = ()
    """Names reported by the driver that would be ambiguous in a seller's title."""
    vram_gb: float = Field(gt=0, le=1024)
    reported_memory_bytes: int | None = Field(default=None, gt=0)
    """Total memory that the driver reports for one device, with ECC as the card is delivered.

    It lacks what ECC and the driver keep. Known for some cards only; see `device_memory_bytes`.
    """
    memory_type: str
    memory_bandwidth_gb_s: float | None = Field(default=None, ge=10, le=30_000)
    memory_bus_width_bit: int | None = Field(default=None, ge=32, le=16_384)
    memory_data_rate_gbit_s: float | None = Field(default=None, ge=1, le=40)
    """Data rate per pin."""
    tdp_w: Watts | None = None
    """Board power; for a superchip or an SoC, that of the whole package, if published.

    For a laptop GPU, the highest power that the vendor specifies; its clock belongs to that power.
    """
    multiprocessors: int | None = Field(default=None, ge=1, le=1024)
    """Streaming multiprocessors (NVIDIA), compute units (AMD), Xe cores (Intel), GPU cores (Apple).

    The plain name of a chip that is sold with several counts stands for the largest.
    """
    boost_clock_mhz: int | None = Field(default=None, ge=500, le=4000)
    """Highest specified clock of the multiprocessors; None for Apple, which publishes none."""
    fp32_vector_tflops: float | None = Field(default=None, gt=0, le=1000)
    """Dense FP32 throughput of the vector units, outside tensor and matrix units, in 10^12
    operations/s: multiprocessors x `fp32_lanes` x 2 (multiplication and addition) x boost clock.

    Instructions issued in pairs and packed FP32 (RDNA 3, CDNA 2 and later) count once: ordinary
    kernels seldom reach the doubled rate. For Apple, the published figure, or cores x clock under
    load.
    """
    fp16_dense_tflops: float | None = Field(default=None, gt=0, le=10_000)
    """FP16 throughput on tensor or matrix units, with FP32 accumulation.

    Chips without them: that of packed FP16 vector instructions, or of FP32 where FP16 is no faster
    (Kepler, Maxwell, Pascal with compute capability 6.1, GCN 4, Apple M1 to M4).
    """
    int8_dense_tops: float | None = Field(default=None, gt=0, le=20_000)
    """INT8 throughput on tensor or matrix units, or of vector instructions that add four products
    (DP4A); None where the chip has neither, and for Volta, whose tensor units have no INT8."""
    devices: int = Field(default=1, ge=1, le=8)
    """GPUs that a board presents to the system; all figures above are the board's total."""
    compute_capability: str | None = Field(default=None, pattern=r"^\d{1,2}\.\d$")
    """CUDA compute capability; NVIDIA only."""
    mig_instances: int = Field(default=0, ge=0, le=7)
    """Maximum number of Multi-Instance GPU slices per device; 0 without MIG."""
    nvlink: bool = False
    source: str = Field(min_length=5)
    """Title of the document with the figures."""

    @model_validator(mode="after")
    def _belongs_to_its_vendor(self) -> Self:
        if (self.vendor == "NVIDIA") != (self.compute_capability is not None):
            raise ValueError("NVIDIA cards need a compute capability, and only they have one")
        if self.vendor != "NVIDIA" and (self.mig_instances or self.nvlink):
            raise ValueError("only NVIDIA cards have MIG and NVLink")
        return self

    @model_validator(mode="after")
    def _reports_at_most_what_it_has(self) -> Self:
        if (self.reported_memory_bytes or 0) > self._nominal_device_bytes:
            raise ValueError("the driver cannot report more memory than the card is sold with")
        return self

    @property
    def names(self) -> tuple[str, ...]:
        """All names of exactly this GPU: its name and aliases, with and without its memory size."""
        plain = (self.canonical_name, *self.aliases)
        memory = f"{self.vram_gb:g}GB"
        return (*plain, *(f"{name} {memory}" for name in plain if memory not in name))

    @property
    def device_memory_bytes(self) -> int:
        """Bytes of memory of each of the board's devices.

        As reported by the driver, else as sold, a GB counting 2^30 bytes: the driver may keep some
        percent of that.
        """
        return self.reported_memory_bytes or self._nominal_device_bytes

    @property
    def _nominal_device_bytes(self) -> int:
        return round(self.vram_gb / self.devices * BYTES_PER_NOMINAL_GB)

    @property
    def fp32_lanes(self) -> int:
        """FP32 operations that a multiprocessor starts per clock."""
        if self.compute_capability is not None:
            return _FP32_LANES.get(self.compute_capability, _USUAL_FP32_LANES)
        return _GCN_FP32_LANES if self.vendor == "AMD" else _USUAL_FP32_LANES

    @property
    def mig_capable(self) -> bool:
        """Whether the card supports Multi-Instance GPU."""
        return self.mig_instances > 0


class GpuRegistry(BaseModel):
    """All known GPUs; raises `ValueError` when two of them share the key of a name."""

    model_config = ConfigDict(frozen=True)

    all: tuple[Gpu, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _names_are_unique(self) -> Self:
        owner: dict[str, str] = {}
        for gpu in self.all:
            for key in {name_key(name) for name in gpu.names}:
                if key in owner:
                    raise ValueError(
                        f"{key!r} names both {owner[key]!r} and {gpu.canonical_name!r}"
                    )
                owner[key] = gpu.canonical_name
        reported = [name for gpu in self.all for name in gpu.driver_names]
        if twice := {name for name in reported if reported.count(name) > 1}:
            raise ValueError(f"{sorted(twice)[0]!r} is the driver's name of two GPUs")
        return self

    @cached_property
    def sold_alone(self) -> "GpuRegistry":
        """The GPUs that sellers offer by themselves: all but those of laptops."""
        return GpuRegistry(all=tuple(gpu for gpu in self.all if gpu.form_factor != "laptop"))

    @cached_property
    def by_name(self) -> Mapping[str, Gpu]:
        """The GPUs by canonical name."""
        return {gpu.canonical_name: gpu for gpu in self.all}

    @cached_property
    def by_key(self) -> Mapping[str, Gpu]:
        """The GPUs by the key of each of their names (see `Gpu.names`)."""
        return {name_key(name): gpu for gpu in self.all for name in gpu.names}

    @cached_property
    def families(self) -> Mapping[str, tuple[Gpu, ...]]:
        """The variants of each family, in the order of the file."""
        groups: dict[str, list[Gpu]] = {}
        for gpu in self.all:
            groups.setdefault(gpu.family, []).append(gpu)
        return {family: tuple(gpus) for family, gpus in groups.items()}

    @cached_property
    def families_by_key(self) -> Mapping[str, tuple[Gpu, ...]]:
        """The variants of each family by the key of its name."""
        return {name_key(family): gpus for family, gpus in self.families.items()}

    def find(self, name: str) -> Gpu | None:
        """The only GPU that `name` can mean; None when there is no such GPU, or more than one."""
        key = name_key(name)
        if (gpu := self.by_key.get(key)) is not None:
            return gpu
        variants = self.families_by_key.get(key, ())
        return variants[0] if len(variants) == 1 else None

    @cached_property
    def by_driver_name(self) -> Mapping[str, Gpu]:
        """The GPUs by their `driver_names`."""
        return {name: gpu for gpu in self.all for name in gpu.driver_names}

    def reported(self, driver_name: str) -> Gpu | None:
        """The only GPU that a driver reports as `driver_name`; None when unknown or ambiguous."""
        return self.by_driver_name.get(driver_name) or self.find(driver_name)

    def variants(self, name: str) -> tuple[Gpu, ...]:
        """All GPUs that `name` can mean: one, or the variants of a family.

        Raises `InputError` when there are none.
        """
        if (gpu := self.find(name)) is not None:
            return (gpu,)
        if (variants := self.families_by_key.get(name_key(name))) is not None:
            return variants
        raise InputError(
            f"No GPU is called {name!r}.",
            "The GPU registry has no such name, alias or family.",
            "Nearest names: " + ", ".join(self.nearest(name)) + ".",
        )

    def get(self, name: str) -> Gpu:
        """The GPU called `name`; raises `InputError` with suggestions if unknown or ambiguous."""
        variants = self.variants(name)
        if len(variants) == 1:
            return variants[0]
        raise InputError(
            f"The name {name!r} is ambiguous.",
            "The card is sold in several memory sizes or form factors.",
            "Use one of: " + ", ".join(variant.canonical_name for variant in variants) + ".",
        )

    def nearest(self, name: str, limit: int = 3) -> list[str]:
        """Up to `limit` canonical names that are most similar to `name`, best first."""
        from rapidfuzz import fuzz, process

        hits = process.extract(name_key(name), list(self.by_key), scorer=fuzz.ratio, limit=None)
        names = dict.fromkeys(self.by_key[key].canonical_name for key, _, _ in hits)
        return list(names)[:limit]


def name_key(name: str) -> str:
    """The part of a GPU name that all its spellings share.

    >>> name_key("NVIDIA RTX A2000 12Gb") == name_key("rtx-a2000, 12 G")
    True
    """
    text = _MAKER_WORDS.sub(" ", name.casefold())
    text = _GIGABYTES.sub(r"\1gb", text)
    return _SEPARATORS.sub("", text)


def load_registry(path: Path | None = None) -> GpuRegistry:
    """Load the registry from `path` (default: `gpus.yaml` in the data folder); cached by mtime.

    Raises `InputError` with the file and its first invalid entry.
    """
    file = (path or get_settings().data / "gpus.yaml").resolve()
    try:
        modified_ns = file.stat().st_mtime_ns
    except OSError as error:
        raise InputError(
            f"The GPU registry {file} cannot be read.",
            f"{error.strerror}.",
            "Restore the file, or choose another one.",
        ) from error
    return _load(file, modified_ns)


@lru_cache(maxsize=4)
def _load(file: Path, modified_ns: int) -> GpuRegistry:  # noqa: ARG001, part of the cache's key
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        return GpuRegistry.model_validate({"all": yaml.load(file.read_bytes(), loader)})  # noqa: S506
    except yaml.YAMLError as error:
        why = " ".join(str(error).split())
    except ValidationError as error:
        first = error.errors()[0]
        location = ".".join(str(part) for part in first["loc"])
        why = f"At {location}: {first['msg']}."
    raise InputError(
        f"The GPU registry {file} is not valid.", why, "Correct the entry and run again."
    )
