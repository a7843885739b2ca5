"""Published model shapes, and the bits per weight that llama.cpp's mixtures take on them.

A mixed level (Q4_K_M, ...) gives different tensors different types, so its effective bits depend
on the model's shape. `data/gguf_mixtures.json` holds them for every shape of
`data/reference_models.yaml`, as llama.cpp's own policy decides; `python -m
quant_assets.capacity.reference_models` asks it again and rewrites the file.
"""

import json
import tempfile
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Final

import yaml
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from quant_assets.atomic_files import write_text_atomically
from quant_assets.errors import InputError
from quant_assets.formats.gguf_levels import GGUF_LEVELS
from quant_assets.models.inspection import ModelShape
from quant_assets.settings import get_settings

DEFAULT_REFERENCE: Final = "Llama 3 8B"
"""The shape whose bits stand for a level where no model is named."""


class ReferenceModel(BaseModel):
    """The shape of one published model of the Llama architecture.

    `capacity_class` (`7b`, ...) marks the shape that stands for a size in capacity columns.
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

    @property
    def shape(self) -> ModelShape:
        """The same as a `ModelShape`."""
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
    """The published shapes by name, smallest first; raises `InputError` when the file is wrong."""
    file = get_settings().data / "reference_models.yaml"
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
        models = TypeAdapter(list[ReferenceModel]).validate_python(content)
    except (OSError, yaml.YAMLError, ValidationError) as error:
        raise InputError(
            f"The file {file} cannot be used.", f"{error}.", "Restore the file that ships."
        ) from error
    return {
        model.name: model for model in sorted(models, key=lambda model: model.shape.n_parameters)
    }


def nearest_reference(n_parameters: float) -> ReferenceModel:
    """The published shape whose number of parameters is nearest by ratio."""
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
            "Make it anew with `python -m quant_assets.capacity.reference_models`.",
        ) from error


def write_metadata_gguf(model: ReferenceModel, path: Path) -> None:
    """Write an F16 GGUF of `model` that has a header and, in place of weights, a hole in the file.

    It takes a few kilobytes of disk, and llama.cpp can be asked about it.
    """
    import gguf
    import numpy as np

    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(model.n_layers)
    writer.add_context_length(model.context_length)
    writer.add_embedding_length(model.hidden_size)
    writer.add_feed_forward_length(model.intermediate_size)
    writer.add_head_count(model.n_heads)
    writer.add_head_count_kv(model.n_kv_heads)
    writer.add_key_length(model.head_dim)
    writer.add_value_length(model.head_dim)
    writer.add_rope_dimension_count(model.head_dim)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(model.vocab_size)
    writer.add_tokenizer_model("none")
    for name, (length, rows) in model.matrices().items():
        writer.add_tensor_info(name, (rows, length), np.dtype("float16"), 2 * rows * length)
    for name, length in model.norms().items():
        writer.add_tensor_info(name, (length,), np.dtype("float32"), 4 * length)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    alignment = 32
    data_bytes = sum(
        -(-size // alignment) * alignment
        for size in (
            *(2 * rows * length for length, rows in model.matrices().values()),
            *(4 * length for length in model.norms().values()),
        )
    )
    with path.open("r+b") as stream:
        end = stream.seek(0, 2)
        stream.truncate(-(-end // alignment) * alignment + data_bytes)


class MixtureJob(BaseModel):
    """Ask llama.cpp for the type of every tensor of a metadata-only GGUF at the named levels."""

    path: Path
    levels: list[str]


class MixtureResult(BaseModel):
    """Effective bits per weight by level."""

    bits_per_weight: dict[str, float]


def measure_mixtures(model: ReferenceModel, levels: list[str]) -> dict[str, float]:
    """Effective bits per weight of `levels` on `model`, from llama.cpp's policy in a worker."""
    from quant_assets.processes.supervisor import run_worker

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.gguf"
        write_metadata_gguf(model, path)
        job = MixtureJob(path=path, levels=levels)
        return run_worker("gguf.mixtures", job, MixtureResult).bits_per_weight


def _rewrite_mixtures() -> None:
    levels = [level.name for level in GGUF_LEVELS]
    measured = {
        model.name: {
            level: round(bits, 4) for level, bits in measure_mixtures(model, levels).items()
        }
        for model in reference_models().values()
    }
    file = get_settings().data / "gguf_mixtures.json"
    write_text_atomically(file, json.dumps(measured, indent=1) + "\n")


if __name__ == "__main__":
    _rewrite_mixtures()
