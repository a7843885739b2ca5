"""The GPU registry: what every card is, from one validated YAML file.

Names are looked up by their key (`name_key`): case, spaces, punctuation and maker's words do not
matter, everything else does. A family ("A100") groups the cards that share a name and differ in
memory or form factor; its bare name is an alias only where it names one card.
"""

import re
from collections.abc import Mapping
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Annotated, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from quant_assets.errors import InputError
from quant_assets.settings import get_settings

Vendor = Literal["NVIDIA", "AMD", "Intel", "Apple"]
Segment = Literal["data_center", "workstation", "consumer", "soc"]
FormFactor = Literal["pcie", "sxm", "oam", "superchip", "module", "soc"]

_MAKER_WORDS = re.compile(r"\b(?:nvidia|geforce|tesla|amd|ati|intel|apple)\b|\((?:r|tm)\)|[®™]")
_GIGABYTES = re.compile(r"(\d)\s*gb?\b")
_SEPARATORS = re.compile(r"[^a-z0-9.]+")

Watts = Annotated[int, Field(ge=5, le=3000)]


class Gpu(BaseModel):
    """One GPU as it is sold: a chip with one memory size in one form factor.

    A figure that its maker does not publish is None, never a guess. GB are as sold (a "24 GB"
    card); throughput is dense, without sparsity, at FP16 with the tensor or matrix units where the
    chip has them.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    canonical_name: str = Field(min_length=2)
    vendor: Vendor
    family: str = Field(min_length=2)
    """The name without memory size and form factor, shared by the variants of one card."""
    architecture: str
    segment: Segment
    form_factor: FormFactor
    release_year: int = Field(ge=2012, le=2027)
    aliases: tuple[str, ...] = ()
    driver_names: tuple[str, ...] = ()
    """What the driver calls it, where a seller's use of the same words would leave it open."""
    vram_gb: float = Field(gt=0, le=1024)
    memory_type: str
    memory_bandwidth_gb_s: float | None = Field(default=None, ge=10, le=30_000)
    memory_bus_width_bit: int | None = Field(default=None, ge=32, le=16_384)
    memory_data_rate_gbit_s: float | None = Field(default=None, ge=1, le=40)
    """Data rate of one pin."""
    tdp_w: Watts | None = None
    """Board power; for a superchip or an SoC the figure of the whole package, where published."""
    fp16_dense_tflops: float | None = Field(default=None, gt=0, le=10_000)
    int8_dense_tops: float | None = Field(default=None, gt=0, le=20_000)
    devices: int = Field(default=1, ge=1, le=8)
    """GPUs that one board shows to the system; all figures above are the board's total."""
    compute_capability: str | None = Field(default=None, pattern=r"^\d{1,2}\.\d$")
    """CUDA compute capability; NVIDIA only."""
    mig_instances: int = Field(default=0, ge=0, le=7)
    """Into how many Multi-Instance GPU slices one device can be split; 0 where there is no MIG."""
    nvlink: bool = False
    source: str = Field(min_length=5)
    """Title of the document that gives the figures."""

    @model_validator(mode="after")
    def _belongs_to_its_vendor(self) -> Self:
        if (self.vendor == "NVIDIA") != (self.compute_capability is not None):
            raise ValueError("a compute capability is given for NVIDIA cards, and for them only")
        if self.vendor != "NVIDIA" and (self.mig_instances or self.nvlink):
            raise ValueError("MIG and NVLink are NVIDIA's")
        return self

    @property
    def names(self) -> tuple[str, ...]:
        """Everything that means exactly this GPU: its name, its aliases, each with its memory."""
        plain = (self.canonical_name, *self.aliases)
        memory = f"{self.vram_gb:g}GB"
        return (*plain, *(f"{name} {memory}" for name in plain if memory not in name))

    @property
    def mig_capable(self) -> bool:
        """Whether the card can be split by Multi-Instance GPU."""
        return self.mig_instances > 0


class GpuRegistry(BaseModel):
    """All known GPUs; raises `ValueError` when a name, after `name_key`, means two of them."""

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
        """The one GPU that `name` means exactly, or None when it means none or several."""
        key = name_key(name)
        if (gpu := self.by_key.get(key)) is not None:
            return gpu
        variants = self.families_by_key.get(key, ())
        return variants[0] if len(variants) == 1 else None

    @cached_property
    def by_driver_name(self) -> Mapping[str, Gpu]:
        """The GPUs by those names of the driver that need an entry of their own."""
        return {name: gpu for gpu in self.all for name in gpu.driver_names}

    def reported(self, driver_name: str) -> Gpu | None:
        """The one GPU that a driver reports as `driver_name`, or None when it may be several."""
        return self.by_driver_name.get(driver_name) or self.find(driver_name)

    def variants(self, name: str) -> tuple[Gpu, ...]:
        """All GPUs that `name` can mean: one, or the variants of a family.

        Raises `InputError` when it means none.
        """
        if (gpu := self.find(name)) is not None:
            return (gpu,)
        if (variants := self.families_by_key.get(name_key(name))) is not None:
            return variants
        raise InputError(
            f"No GPU is called {name!r}.",
            "It is neither a name nor an alias nor a family of the GPU registry.",
            "Nearest names: " + ", ".join(self.nearest(name)) + ".",
        )

    def get(self, name: str) -> Gpu:
        """The GPU that `name` means; raise `InputError` with the nearest names otherwise."""
        variants = self.variants(name)
        if len(variants) == 1:
            return variants[0]
        raise InputError(
            f"The name {name!r} means several GPUs.",
            "It is sold in several memory sizes or form factors.",
            "Name one of: " + ", ".join(variant.canonical_name for variant in variants) + ".",
        )

    def nearest(self, name: str, limit: int = 3) -> list[str]:
        """The canonical names that look most like `name`, best first, at most `limit`."""
        from rapidfuzz import fuzz, process

        hits = process.extract(name_key(name), list(self.by_key), scorer=fuzz.ratio, limit=None)
        names = dict.fromkeys(self.by_key[key].canonical_name for key, _, _ in hits)
        return list(names)[:limit]


def name_key(name: str) -> str:
    """What two spellings of one GPU name have in common.

    >>> name_key("NVIDIA RTX A2000 12Gb") == name_key("rtx-a2000, 12 G")
    True
    """
    text = _MAKER_WORDS.sub(" ", name.casefold())
    text = _GIGABYTES.sub(r"\1gb", text)
    return _SEPARATORS.sub("", text)


def load_registry(path: Path | None = None) -> GpuRegistry:
    """The registry in `path` (default: `gpus.yaml` of the data folder), read once per version.

    Raises `InputError` that names the file and the first wrong entry.
    """
    file = (path or get_settings().data / "gpus.yaml").resolve()
    try:
        modified_ns = file.stat().st_mtime_ns
    except OSError as error:
        raise InputError(
            f"The GPU registry {file} cannot be read.",
            f"{error.strerror}.",
            "Restore the file, or name another one.",
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
