"""The YAML list of models from which the graph is built."""

from pathlib import Path
from typing import Annotated, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from quant_assets.errors import InputError
from quant_assets.formats.gguf_levels import parse_level

ModelName = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_.-]{0,80}$")]


class ModelConfig(BaseModel):
    """One source model and the artifacts made from it.

    `source` is a hub id (`owner/name` or `owner/name@revision`), a folder with safetensors, a GGUF
    file, or `package:<distribution>/<file>` for a GGUF file inside an installed Python package.
    `gguf_levels` are the levels of the GGUF artifacts; `F16` comes first by convention, as the
    baseline of all comparisons. With `importance_matrix` the quantized levels are
    weighted by one, measured on the default calibration text; some levels need it.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: ModelName
    source: str
    gguf_levels: tuple[str, ...] = ("F16", "Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "Q4_0")
    importance_matrix: bool = False

    @field_validator("gguf_levels")
    @classmethod
    def _known_levels(cls, levels: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(parse_level(level).name for level in levels)

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
    """Read and validate the model list; raise `InputError` naming an invalid file."""
    try:
        return ModelList.model_validate(yaml.safe_load(path.read_text(encoding="utf-8"))).models
    except (OSError, yaml.YAMLError, ValidationError, InputError) as error:
        raise InputError(
            f"The model list {path} cannot be used.",
            str(error),
            "Correct the file; see `data/models.yaml` in the project for the format.",
        ) from error
