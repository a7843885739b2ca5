"""Published model shapes, and the bits per weight of llama.cpp's mixtures on them.

A mixed level (Q4_K_M, ...) gives tensors different types, so its effective bits depend
on the model's shape. `data/gguf_mixtures.json` holds them for every shape of
`data/reference_models.yaml`, as llama.cpp's own policy decides; `update_gguf_mixtures.py`
regenerates it.
"""

from collections.abc import Mapping
from functools import cache, cached_property
from typing import Final

import yaml
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from quant_assets.errors import InputError
from quant_assets.models.inspection import ModelShape
from quant_assets.settings import get_settings

DEFAULT_REFERENCE: Final = "Llama 3 8B"
"""The shape whose bits represent a level where no model is given."""


class ReferenceModel(BaseModel):
    """The shape of one published model of the Llama architecture.

    `capacity_class` (`7b`, ...) marks the shape that represents a size in capacity columns.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    capacity_class: str | None = None
    n_layers: int = Field(gt=0)
    hidden_size: int = Field(gt=0)
    intermediate_size: int = Field(gt=0)
    n_heads: int = Field(gt=0)
    n_kv_heads: int = Field(gt=0)
    head_dim: int = Field(gt=0)
    vocab_size: int = Field(gt=0)
    context_length: int = Field(gt=0)
    tied_embeddings: bool = False

    def matrices(self) -> dict[str, tuple[int, int]]:
        """Every matrix by its GGUF name, as (row length, rows)."""
        hidden, inner = self.hidden_size, self.intermediate_size
        query, key = self.n_heads * self.head_dim, self.n_kv_heads * self.head_dim
        block = {
            "attn_q": (hidden, query),
            "attn_k": (hidden, key),
            "attn_v": (hidden, key),
            "attn_output": (query, hidden),
            "ffn_gate": (hidden, inner),
            "ffn_up": (hidden, inner),
            "ffn_down": (inner, hidden),
        }
        return {
            "token_embd.weight": (hidden, self.vocab_size),
            **({} if self.tied_embeddings else {"output.weight": (hidden, self.vocab_size)}),
            **{
                f"blk.{layer}.{role}.weight": shape
                for layer in range(self.n_layers)
                for role, shape in block.items()
            },
        }

    def norms(self) -> dict[str, int]:
        """Every normalization vector by its GGUF name."""
        return {
            "output_norm.weight": self.hidden_size,
            **{
                f"blk.{layer}.{role}.weight": self.hidden_size
                for layer in range(self.n_layers)
                for role in ("attn_norm", "ffn_norm")
            },
        }

    @cached_property
    def shape(self) -> ModelShape:
        """The equivalent `ModelShape`."""
        matrices = {name: rows * length for name, (length, rows) in self.matrices().items()}
        return ModelShape(
            architecture="llama",
            n_layers=self.n_layers,
            hidden_size=self.hidden_size,
            intermediate_size=self.intermediate_size,
            n_heads=self.n_heads,
            kv_heads_by_layer=(self.n_kv_heads,) * self.n_layers,
            head_dim_k=self.head_dim,
            head_dim_v=self.head_dim,
            vocab_size=self.vocab_size,
            context_length=self.context_length,
            n_parameters=sum(matrices.values()) + sum(self.norms().values()),
            n_linear_parameters=sum(
                count for name, count in matrices.items() if name.startswith("blk.")
            ),
        )


@cache
def reference_models() -> Mapping[str, ReferenceModel]:
    """The published shapes by name, smallest first; raises `InputError` for an invalid file."""
    file = get_settings().data / "reference_models.yaml"
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
        models = TypeAdapter(list[ReferenceModel]).validate_python(content)
    except (OSError, yaml.YAMLError, ValidationError) as error:
        raise InputError(
            f"The file {file} cannot be used.", f"{error}.", "Restore the original file."
        ) from error
    return {
        model.name: model for model in sorted(models, key=lambda model: model.shape.n_parameters)
    }


def nearest_reference(n_parameters: float) -> ReferenceModel:
    """The published shape nearest in number of parameters, by ratio."""
    return min(
        reference_models().values(),
        key=lambda model: max(
            n_parameters / model.shape.n_parameters, model.shape.n_parameters / n_parameters
        ),
    )


def mixture_bits(level: str, model: str = DEFAULT_REFERENCE) -> float:
    """Effective bits per weight of the GGUF `level` on the reference `model`.

    All tensors count, norms included; the file's header does not.
    """
    return _mixtures()[model][level]


@cache
def _mixtures() -> dict[str, dict[str, float]]:
    file = get_settings().data / "gguf_mixtures.json"
    try:
        return TypeAdapter(dict[str, dict[str, float]]).validate_json(file.read_bytes())
    except (OSError, ValidationError) as error:
        raise InputError(
            f"The file {file} cannot be used.",
            f"{error}.",
            "Regenerate it with `python -m quant_assets.capacity.update_gguf_mixtures`.",
        ) from error
