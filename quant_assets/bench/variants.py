"""Variants: artifacts, and how they are run."""

from pathlib import Path
from typing import Annotated, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from quant_assets.bench.settings import BenchSettings
from quant_assets.errors import InputError
from quant_assets.formats.artifact_formats import ArtifactFormat
from quant_assets.formats.group_quantization import GroupQuantization, parse_group_quantization

VariantName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,80}$")]
CacheType = Literal["f32", "f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0", "iq4_nl"]
Backend = Literal["llamacpp", "torch", "endpoint"]

BASELINE_VARIANT = "f16"


class Variant(BaseModel):
    """One way to run a model: the weights' format and level, and the types of the KV cache.

    The level of GPTQ and AWQ is bits and group size, such as `4bit-g64`; `bits` and `group_size` may
    repeat them as numbers. `cache_type_k` and `cache_type_v` are ggml
    types and belong to GGUF; transformers keeps its cache in the type of the activations.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: VariantName
    format: ArtifactFormat
    level: str
    cache_type_k: CacheType = "f16"
    cache_type_v: CacheType = "f16"
    bits: int | None = None
    group_size: int | None = None
    description: str = ""

    @property
    def backend(self) -> Backend:
        """The backend that runs it."""
        return "llamacpp" if self.format == "gguf" else "torch"

    @property
    def has_f16_cache(self) -> bool:
        """Whether the KV cache has llama.cpp's default types, or is not configurable."""
        return (self.cache_type_k, self.cache_type_v) == ("f16", "f16")

    @property
    def quantization(self) -> GroupQuantization | None:
        """Bits and group size of GPTQ and AWQ; None for GGUF. Raises `InputError` for a bad level."""
        if self.format == "gguf":
            return None
        return parse_group_quantization(f"{self.format}-{self.level}")

    @model_validator(mode="after")
    def _fields_fit_the_format(self) -> "Variant":
        if self.format == "gguf":
            if self.bits is not None or self.group_size is not None:
                raise ValueError("`bits` and `group_size` belong to GPTQ and AWQ variants")
        elif not self.has_f16_cache:
            raise ValueError("`cache_type_k` and `cache_type_v` belong to GGUF variants")
        else:
            self._check_level()
        return self

    def _check_level(self) -> None:
        try:
            parsed = self.quantization
        except InputError as error:
            raise ValueError(f"{error.what} {error.why}") from error
        if parsed is None or parsed.name != f"{self.format}-{self.level}":
            raise ValueError(
                f"the level of a {self.format} variant looks like 4bit-g128, not {self.level}"
            )
        if (self.bits or parsed.bits, self.group_size or parsed.group_size) != (
            parsed.bits,
            parsed.group_size,
        ):
            raise ValueError("`bits` and `group_size` contradict the level")


class _VariantsFile(BaseModel):
    model_config = ConfigDict(extra="forbid")

    settings: BenchSettings = BenchSettings()
    variants: dict[str, Variant] = Field(min_length=1)

    @model_validator(mode="before")
    @classmethod
    def _names_from_keys(cls, content: object) -> object:
        if isinstance(content, dict) and isinstance(content.get("variants"), dict):
            variants = {
                name: {**fields, "name": name} if isinstance(fields, dict) else fields
                for name, fields in content["variants"].items()
            }
            return {**content, "variants": variants}
        return content


def _load(path: Path) -> _VariantsFile:
    try:
        return _VariantsFile.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    except (OSError, yaml.YAMLError, ValidationError) as error:
        raise InputError(
            f"The variants file {path} cannot be used.",
            str(error),
            "Correct the file; `data/variants.yaml` in the project shows the format.",
        ) from error


def load_variants(path: Path) -> dict[str, Variant]:
    """The variants of a YAML file by name, in its order; raise `InputError` when it is invalid."""
    return _load(path).variants


def load_settings(path: Path) -> BenchSettings:
    """The section `settings` of the variants file; raise `InputError` when it is invalid."""
    return _load(path).settings
