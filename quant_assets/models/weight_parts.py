"""Bytes of a model's weights by part: what a split over devices moves apart."""

from collections.abc import Iterable
from typing import NamedTuple

from quant_assets.models.inspection import LayerWeights, ModelShape


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


def stored_parts(shape: ModelShape) -> WeightParts | None:
    """The parts of the files that `shape` was read from; None for a shape without files.

    Layers beyond the model's own, as of a draft head, count with its last.
    """
    roles = shape.tensor_roles
    if roles is None or shape.weights_bytes is None or not shape.layer_weights:
        return None
    layers = [*shape.layer_weights[: shape.n_layers]]
    layers += [LayerWeights(0)] * (shape.n_layers - len(layers))
    beyond = shape.layer_weights[shape.n_layers :]
    layers[-1] = LayerWeights(
        layers[-1].dense + sum(layer.dense for layer in beyond),
        layers[-1].experts + sum(layer.experts for layer in beyond),
    )
    inside = sum(layer.dense + layer.experts for layer in layers)
    return WeightParts(
        layers=tuple(layers),
        embedding=roles.lookup_bytes,
        output=shape.weights_bytes - inside - roles.lookup_bytes,
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
