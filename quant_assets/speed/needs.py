"""Memory, traffic and operations of one served copy of a variant: the roofline model's input.

The roofline model (Williams, Waterman and Patterson, 2009) bounds a step's time from below by the
larger of bytes over memory bandwidth and operations over peak throughput.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Literal, NamedTuple

import yaml
from pydantic import BaseModel, ConfigDict, Field, PositiveInt, ValidationError

from quant_assets.bench.variants import Backend, Variant
from quant_assets.capacity.memory import (
    Serving,
    compute_buffer_bytes,
    kv_cache_bytes,
    kv_row_bytes,
)
from quant_assets.errors import InputError
from quant_assets.models.inspection import ModelShape


class ServingGrid(BaseModel):
    """The context lengths (tokens) and batch sizes that the marts cover."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    contexts: tuple[PositiveInt, ...] = Field(min_length=1)
    batches: tuple[PositiveInt, ...] = Field(min_length=1)

    def points(self, context_length: int | None) -> Iterator[tuple[int, int]]:
        """(context, batch), the contexts capped at the model's own limit."""
        limit = context_length or max(self.contexts)
        for context in sorted({min(context, limit) for context in self.contexts}):
            for batch in sorted(set(self.batches)):
                yield context, batch


def load_grid(path: Path) -> ServingGrid:
    """Read the grid's YAML file; raise `InputError` naming it when it is invalid."""
    try:
        return ServingGrid.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    except (OSError, yaml.YAMLError, ValidationError) as error:
        raise InputError(
            f"The serving grid {path} cannot be used.",
            str(error),
            "Correct the file: it has two lists of whole numbers, `contexts` and `batches`.",
        ) from error


class StoredWeights(NamedTuple):
    """A finished artifact: its id and the bytes of its tensors."""

    artifact_id: str
    tensor_bytes: int


class ServingNeeds(BaseModel):
    """One copy of a variant serving `batch_size` sequences of up to `context_tokens` tokens.

    Memory holds `weights_bytes`, `kv_cache_bytes` and `compute_bytes`. A decoding step of
    all sequences reads `decode_bytes` and computes `decode_flops`, at the middle of the generated
    part. The prefill of `prompt_tokens` tokens of every sequence computes `prefill_flops` and
    reads the weights at least once (`prefill_bytes`). `source`: a point of the serving
    grid, or the lengths of measured runs.
    """

    model: str
    variant: str
    backend: Backend
    artifact_id: str
    source: Literal["grid", "run"]
    context_tokens: int
    prompt_tokens: int
    batch_size: int
    weights_bytes: int
    kv_cache_bytes: int
    compute_bytes: int
    decode_bytes: int
    decode_flops: int
    prefill_bytes: int
    prefill_flops: int


class _ServingPoint(NamedTuple):
    """Lengths and batch size; an average decoding step attends to `read_tokens` per sequence."""

    source: Literal["grid", "run"]
    context_tokens: int
    prompt_tokens: int
    batch_size: int
    read_tokens: float


def grid_needs(
    model: str,
    shape: ModelShape,
    variant: Variant,
    weights: StoredWeights,
    grid: ServingGrid,
) -> Iterator[ServingNeeds]:
    """The needs at every point of the grid.

    A sequence grows from nothing to its whole context, so an average step is at half of it; the
    prompt of the prefill is the whole context. Raises `InputError` for a cache type that the
    model's heads do not allow.
    """
    for context, batch in grid.points(shape.context_length):
        point = _ServingPoint("grid", context, context, batch, read_tokens=context / 2)
        yield _needs(model, shape, variant, weights, point)


def run_needs(
    model: str,
    shape: ModelShape,
    variant: Variant,
    weights: StoredWeights,
    lengths: Iterable[tuple[int, int, int]],
) -> Iterator[ServingNeeds]:
    """The needs of measured runs, by (prompt tokens, generated tokens, batch size)."""
    for prompt, generated, batch in lengths:
        point = _ServingPoint(
            "run", prompt + generated, prompt, batch, read_tokens=prompt + generated / 2
        )
        yield _needs(model, shape, variant, weights, point)


def _needs(
    model: str,
    shape: ModelShape,
    variant: Variant,
    weights: StoredWeights,
    point: _ServingPoint,
) -> ServingNeeds:
    context, prompt, batch = point.context_tokens, point.prompt_tokens, point.batch_size
    serving = Serving(
        context=context,
        batch=batch,
        kv_type_k=variant.cache_type_k.upper(),
        kv_type_v=variant.cache_type_v.upper(),
    )
    bytes_per_parameter = weights.tensor_bytes / shape.n_parameters
    head = shape.vocab_size * shape.hidden_size
    step_parameters = touched_linear_parameters(shape, batch) + head
    token_parameters = touched_linear_parameters(shape, 1)
    step_weights = step_parameters * bytes_per_parameter
    kv_read = batch * kv_read_bytes(shape, serving, point.read_tokens)
    decode_flops = batch * (
        2 * (token_parameters + head) + attention_flops(shape, point.read_tokens)
    )
    # Only the last token's logits are needed; an average token attends to half the prompt.
    prefill_flops = batch * (
        prompt * (2 * token_parameters + attention_flops(shape, prompt / 2)) + 2 * head
    )
    return ServingNeeds(
        model=model,
        variant=variant.name,
        backend=variant.backend,
        artifact_id=weights.artifact_id,
        source=point.source,
        context_tokens=context,
        prompt_tokens=prompt,
        batch_size=batch,
        weights_bytes=weights.tensor_bytes,
        kv_cache_bytes=kv_cache_bytes(shape, serving),
        compute_bytes=compute_buffer_bytes(shape, serving),
        decode_bytes=round(step_weights + kv_read),
        decode_flops=round(decode_flops),
        prefill_bytes=round(
            (touched_linear_parameters(shape, batch * prompt) + head) * bytes_per_parameter
        ),
        prefill_flops=round(prefill_flops),
    )


def touched_linear_parameters(shape: ModelShape, tokens: int) -> float:
    """Parameters of the blocks' matrices that at least one of `tokens` tokens uses.

    All of them in a dense model. In a mixture of E experts of which each token uses k, the
    expected share is 1 - (1 - k / E)^tokens if tokens spread evenly.
    """
    if not shape.n_experts:
        return shape.n_linear_parameters
    attention = sum(
        shape.hidden_size
        * (2 * shape.n_heads * shape.head_dim_k + heads * (shape.head_dim_k + shape.head_dim_v))
        for heads in shape.kv_heads_by_layer
    )
    attention = min(attention, shape.n_linear_parameters)
    unused = (1 - shape.n_experts_used / shape.n_experts) ** tokens
    return attention + (shape.n_linear_parameters - attention) * (1 - unused)


def kv_read_bytes(shape: ModelShape, serving: Serving, tokens: float) -> float:
    """Bytes of K and V that one sequence of `tokens` tokens reads in a decoding step."""
    total = 0.0
    for layer, kv_heads in enumerate(sorted(shape.kv_heads_by_layer, reverse=True)):
        slides = shape.sliding_window is not None and layer < shape.n_sliding_layers
        kept = min(tokens, shape.sliding_window or tokens) if slides else tokens
        total += kept * kv_row_bytes(shape, serving, kv_heads)
    return total


def attention_flops(shape: ModelShape, tokens: float) -> float:
    """Operations of one token's attention to `tokens` others: Q x K and weights x V, 2 each."""
    layers = sum(heads > 0 for heads in shape.kv_heads_by_layer)
    head_dims = shape.head_dim_k + (shape.head_dim_v or shape.head_dim_k)
    return 2 * layers * shape.n_heads * head_dims * tokens
