"""Bytes of a model's weights by layer, read from headers: what a split over devices moves apart."""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Final, NamedTuple

from quant_assets.formats.gguf_header import read_gguf_header
from quant_assets.formats.safetensors_header import tensors_of_folder
from quant_assets.models.inspection import ModelShape

_GGUF_LAYER: Final = re.compile(r"^blk\.(\d+)\.")
_GGUF_EXPERTS: Final = re.compile(r"\.ffn_(?:up|down|gate|gate_up)_(?:ch)?exps\b")
"""What `--n-cpu-moe` keeps in host memory (llama.cpp, common/common.h): not the shared experts."""
_GGUF_INPUT: Final = ("token_embd", "token_types", "position_embd", "per_layer_token_embd")

_FOLDER_LAYER: Final = re.compile(r"\.(?:layers|h|blocks)\.(\d+)\.")
_FOLDER_EXPERTS: Final = re.compile(r"\.experts\.")
_FOLDER_INPUT: Final = re.compile(r"\b(?:embed_tokens|wte|word_embeddings|embed_in)\b")
_FOLDER_OTHER_MODALITY: Final = re.compile(r"^(?:model\.)?(?:vision|visual|audio|multi_modal)")


class LayerWeights(NamedTuple):
    """Bytes of one layer's weights; `experts` are those of which a router chooses some per token."""

    dense: int
    experts: int = 0


class WeightParts(NamedTuple):
    """Bytes of the layers, of the input embedding, and of the rest: output head and norms.

    `embedding` is 0 where the output head is the same matrix: it then counts as `output`.
    """

    layers: tuple[LayerWeights, ...]
    embedding: int
    output: int

    @property
    def total(self) -> int:
        """Bytes of all parts."""
        return sum(layer.dense + layer.experts for layer in self.layers) + (
            self.embedding + self.output
        )

    def rescaled(
        self, total_bytes: int, *, embedding: int | None = None, output: int | None = None
    ) -> "WeightParts":
        """The same layers with all parts together at `total_bytes`.

        `embedding` and `output` are set to the given bytes; without them they keep their proportion.
        """
        sizes = [size for layer in self.layers for size in layer]
        left = max(0, total_bytes - (embedding or 0) - (output or 0))
        *sizes, own_embedding, own_output = spread(
            left,
            [
                *sizes,
                self.embedding if embedding is None else 0,
                self.output if output is None else 0,
            ],
        )
        return WeightParts(
            layers=tuple(
                LayerWeights(dense, experts)
                for dense, experts in zip(sizes[::2], sizes[1::2], strict=True)
            ),
            embedding=own_embedding if embedding is None else min(embedding, total_bytes),
            output=own_output if output is None else output,
        )


def spread(total: int, proportions: Iterable[float]) -> list[int]:
    """Whole numbers in the given proportions that sum to `total`; equal ones if all are 0."""
    listed = list(proportions)
    if not sum(listed):
        listed = [1.0] * len(listed)
    whole, reached, given = sum(listed), 0.0, 0
    shares = []
    for proportion in listed:
        reached += proportion
        share = round(total * (reached / whole)) - given
        given += share
        shares.append(share)
    return shares


def stored_parts(path: Path, shape: ModelShape) -> WeightParts:
    """The parts of the Hugging Face folder or GGUF file at `path`, whose shape is `shape`.

    Raises `InputError` when a file is missing or damaged.
    """
    dense, experts = [0] * shape.n_layers, [0] * shape.n_layers
    embedding = output = head = 0
    sizes = _folder_sizes(path) if path.is_dir() else _gguf_sizes(path)
    for part, layer, size in sizes:
        if part == "input":
            embedding += size
        elif layer is None:
            output += size
            head += part == "head"
        elif part == "experts":
            experts[min(layer, shape.n_layers - 1)] += size
        else:
            dense[min(layer, shape.n_layers - 1)] += size
    if not head:  # the embedding is the output head as well
        embedding, output = 0, output + embedding
    return WeightParts(
        layers=tuple(LayerWeights(*pair) for pair in zip(dense, experts, strict=True)),
        embedding=embedding,
        output=output,
    )


def typical_parts(shape: ModelShape) -> WeightParts:
    """Relative sizes of the parts of a model without files: all layers alike, all weights equally wide."""
    head = shape.vocab_size * shape.hidden_size
    other = shape.n_parameters - shape.n_linear_parameters
    tied = other < 2 * head
    attention = 0
    if shape.n_experts:
        attention = sum(
            shape.hidden_size
            * (2 * shape.n_heads * shape.head_dim_k + heads * (shape.head_dim_k + shape.head_dim_v))
            for heads in shape.kv_heads_by_layer
        )
    linear = spread(shape.n_linear_parameters, [1.0] * shape.n_layers)
    layers = []
    for size in linear:
        dense = min(size, attention // shape.n_layers) if shape.n_experts else size
        layers.append(LayerWeights(dense, size - dense))
    embedding = 0 if tied else min(head, other)
    return WeightParts(tuple(layers), embedding, max(0, other - embedding))


def _gguf_sizes(path: Path) -> Iterable[tuple[str, int | None, int]]:
    for tensor in read_gguf_header(path).tensors:
        layer = _GGUF_LAYER.match(tensor.name)
        if layer is not None:
            part = "experts" if _GGUF_EXPERTS.search(tensor.name) else "dense"
            yield part, int(layer[1]), tensor.n_bytes
        elif tensor.name.startswith(_GGUF_INPUT):
            yield "input", None, tensor.n_bytes
        else:
            yield "head" if tensor.name == "output.weight" else "other", None, tensor.n_bytes


def _folder_sizes(folder: Path) -> Iterable[tuple[str, int | None, int]]:
    for _, tensor in tensors_of_folder(folder).values():
        layer = _FOLDER_LAYER.search(f".{tensor.name}")
        if _FOLDER_OTHER_MODALITY.match(tensor.name):
            yield "other", None, tensor.n_bytes
        elif layer is not None:
            part = "experts" if _FOLDER_EXPERTS.search(tensor.name) else "dense"
            yield part, int(layer[1]), tensor.n_bytes
        elif _FOLDER_INPUT.search(tensor.name):
            yield "input", None, tensor.n_bytes
        else:
            head = ".lm_head." in f".{tensor.name}" or ".embed_out." in f".{tensor.name}"
            yield "head" if head else "other", None, tensor.n_bytes
