"""The YAML list of models from which the graph is built."""

from pathlib import Path
from typing import Annotated, Self

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from quant_assets.errors import InputError
from quant_assets.formats.gguf_levels import parse_level
from quant_assets.models.quantization_intent import QuantizationIntent, gguf_level
from quant_assets.record_files import MAX_TOKENS

_BASELINE = "F16"

_ContextTokens = Annotated[int, Field(ge=64, le=MAX_TOKENS)]
ModelName = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_.-]{0,80}$")]


class ModelConfig(BaseModel):
    """One source model and the artifacts made from it.

    `source` is a hub id (`owner/name` or `owner/name@revision`), a folder with safetensors, a GGUF
    file, or `package:<distribution>/<file>` for a GGUF file inside an installed Python package.
    `gguf_levels` are the levels of the GGUF artifacts; `F16` comes first by convention, as the
    baseline of all comparisons. With `importance_matrix` the quantized levels are
    weighted by one, measured on the calibration text; some levels need it.
    `kv_cache_contexts` are the contexts (tokens) at which variants with a quantized KV cache are
    compared with an F16 cache, capped at the model's own context.
    `quantization` is the intent with which every backend serves the model. The GGUF level that
    fulfils it for llama.cpp becomes one of `gguf_levels`, and its calibration is that of the
    model's assets; `quant-assets intent --model-name` prints what the other backends need.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: ModelName
    source: str
    quantization: QuantizationIntent | None = None
    gguf_levels: tuple[str, ...] = Field(
        default=(_BASELINE, "Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "Q4_0"), validate_default=True
    )
    importance_matrix: bool = False
    kv_cache_contexts: tuple[_ContextTokens, ...] = Field(default=(512, 2048), min_length=1)

    @field_validator("gguf_levels")
    @classmethod
    def _known_levels(cls, levels: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
        """The levels by their full names, with the one that `quantization` needs."""
        known = tuple(parse_level(level).name for level in levels)
        intent = info.data.get("quantization")
        needed = gguf_level(intent) if intent else None
        if needed is None or needed in known:
            return known
        return (needed, *known) if needed == _BASELINE else (*known, needed)

    @model_validator(mode="after")
    def _imatrix_where_needed(self) -> Self:
        needing = [level for level in self.gguf_levels if parse_level(level).needs_imatrix]
        if needing and not self.importance_matrix:
            raise ValueError(f"{', '.join(needing)} need `importance_matrix: true`")
        return self

    @property
    def slug(self) -> str:
        """The name as an identifier, for asset keys and groups."""
        return "".join(character if character.isalnum() else "_" for character in self.name)


class ModelList(BaseModel):
    """The content of `models.yaml`."""

    model_config = ConfigDict(extra="forbid")

    models: tuple[ModelConfig, ...] = Field(min_length=1)

    @field_validator("models")
    @classmethod
    def _distinct_slugs(cls, models: tuple[ModelConfig, ...]) -> tuple[ModelConfig, ...]:
        slugs = [model.slug for model in models]
        if len(set(slugs)) != len(slugs):
            raise ValueError(f"two models share a name: {sorted(slugs)}")
        return models


def load_models(path: Path) -> tuple[ModelConfig, ...]:
    """Read and validate the model list; raise `InputError` naming an invalid file and field."""
    try:
        return ModelList.model_validate(yaml.safe_load(path.read_text(encoding="utf-8"))).models
    except (OSError, yaml.YAMLError, ValidationError, InputError) as error:
        raise InputError(
            f"The model list {path} cannot be used.",
            _invalid_fields(error) if isinstance(error, ValidationError) else str(error),
            "Correct the file; see `data/models.yaml` in the project for the format.",
        ) from error


def model_named(name: str, path: Path) -> ModelConfig:
    """The model called `name` in the list at `path`; raises `InputError` where it has none."""
    models = {model.name: model for model in load_models(path)}
    if name not in models:
        raise InputError(
            f"There is no model {name!r} in {path}.",
            f"It lists {', '.join(models)}.",
            "Use one of these names, or add the model to the file.",
        )
    return models[name]


def _invalid_fields(error: ValidationError) -> str:
    """Each invalid field by its place in the file, such as `models.0.quantization.method`."""
    return "; ".join(
        f"{'.'.join(str(part) for part in found['loc']) or 'the file'}: "
        f"{found['msg'].removeprefix('Value error, ')}"
        for found in error.errors()
    )
