"""Memory, traffic and operations of one served copy of a variant: the input of the speed model.

They bound a step's time from below, too: by the larger of bytes over memory bandwidth and operations
over peak throughput (the roofline model of Williams, Waterman and Patterson, 2009).
"""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final, Literal, NamedTuple

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
from quant_assets.formats.gguf_levels import parse_level
from quant_assets.models.inspection import ModelShape
from quant_assets.speed.workload import GpuBackend, Workload

ENGINE_OF_BACKEND: Final[dict[str, str]] = {"llamacpp": "llama.cpp", "torch": "transformers"}
"""The engine that runs a variant's backend, as the speed model names it."""


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
    all sequences reads `decode_bytes`, of which `decode_kv_bytes` are the KV cache, and computes
    `decode_flops`, at the middle of the generated part. The prefill of `prompt_tokens` tokens of
    every sequence passes `prefill_pass_tokens` tokens at a time, of which each pass reads
    `prefill_bytes`, and computes `prefill_flops`. The `*_attention_flops` are the part of Q x K and
    weights x V; `*_parameters` multiply each token. `source`: a point of the serving
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
    weight_type: str
    n_layers: int
    is_sparse: bool
    decode_bytes: int
    decode_kv_bytes: int
    decode_parameters: int
    decode_flops: int
    decode_attention_flops: int
    prefill_bytes: int
    prefill_pass_tokens: int
    prefill_parameters: int
    prefill_flops: int
    prefill_attention_flops: int

    def decode_workload(self, gpu_backend: GpuBackend) -> Workload:
        """A decoding step of all sequences."""
        return Workload(
            phase="decode",
            engine=ENGINE_OF_BACKEND[self.backend],
            backend=gpu_backend,
            weight_type=self.weight_type,
            weight_bytes=self.decode_bytes - self.decode_kv_bytes,
            parameters=self.decode_parameters,
            layers=self.n_layers,
            batch=self.batch_size,
            tokens=self.batch_size,
            tokens_per_pass=self.batch_size,
            kv_bytes=self.decode_kv_bytes,
            attention_flops=self.decode_attention_flops,
            sparse=self.is_sparse,
        )

    def prefill_workload(self, gpu_backend: GpuBackend) -> Workload:
        """The prefill of all sequences' prompts."""
        return Workload(
            phase="prefill",
            engine=ENGINE_OF_BACKEND[self.backend],
            backend=gpu_backend,
            weight_type=self.weight_type,
            weight_bytes=self.prefill_bytes,
            parameters=self.prefill_parameters,
            layers=self.n_layers,
            batch=self.batch_size,
            tokens=self.batch_size * self.prompt_tokens,
            tokens_per_pass=self.prefill_pass_tokens,
            kv_bytes=0,
            attention_flops=self.prefill_attention_flops,
            sparse=self.is_sparse,
        )


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
    head = shape.vocab_size * shape.hidden_size
    token_parameters = touched_linear_parameters(shape, 1)
    kv_read = batch * kv_read_bytes(shape, serving, point.read_tokens)
    decode_attention = batch * attention_flops(shape, point.read_tokens)
    decode_flops = batch * 2 * (token_parameters + head) + decode_attention
    # Only the last token's logits are needed; an average token attends to half the prompt.
    prefill_attention = batch * prompt * attention_flops(shape, prompt / 2)
    prefill_flops = batch * (prompt * 2 * token_parameters + 2 * head) + prefill_attention
    prefill_tokens = batch * prompt
    # llama.cpp passes a micro-batch at a time, transformers the whole prompts.
    pass_tokens = (
        min(serving.micro_batch, prefill_tokens) if variant.format == "gguf" else prefill_tokens
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
        weight_type=weight_type(shape, variant),
        n_layers=shape.n_layers,
        is_sparse=shape.n_experts > 0,
        decode_bytes=round(pass_weight_bytes(shape, weights.tensor_bytes, batch) + kv_read),
        decode_kv_bytes=round(kv_read),
        decode_parameters=round(token_parameters + head),
        decode_flops=round(decode_flops),
        decode_attention_flops=round(decode_attention),
        prefill_bytes=round(pass_weight_bytes(shape, weights.tensor_bytes, pass_tokens)),
        prefill_pass_tokens=pass_tokens,
        prefill_parameters=round(token_parameters),
        prefill_flops=round(prefill_flops),
        prefill_attention_flops=round(prefill_attention),
    )


def weight_type(shape: ModelShape, variant: Variant) -> str:
    """The type of most weights, as the speed model names it: a ggml type, `gptq-4bit`, `awq-4bit`.

    That of the file where `shape` comes from one: rows that a K-quant's blocks do not divide are
    stored in another type than the level's. Raises `InputError` for an unknown level.
    """
    if (group := variant.quantization) is not None:
        return f"{group.method}-{group.bits}bit"
    roles = shape.tensor_roles
    return roles.main_type if roles is not None else parse_level(variant.level).main_type


def pass_weight_bytes(shape: ModelShape, tensor_bytes: int, tokens: int) -> float:
    """Bytes of weights that a pass of `tokens` tokens reads, of `tensor_bytes` in total.

    All but an input embedding that is not the output head too, and the experts that none of the
    tokens uses. A shape without files takes the average bytes of a parameter for both.
    """
    roles = shape.tensor_roles
    if roles is not None:
        return tensor_bytes - roles.lookup_bytes - roles.expert_bytes * unused_share(shape, tokens)
    read = touched_linear_parameters(shape, tokens) + shape.vocab_size * shape.hidden_size
    return read * tensor_bytes / shape.n_parameters


def unused_share(shape: ModelShape, tokens: int) -> float:
    """The expected share of routed experts that none of `tokens` tokens uses: (1 - k / E)^tokens.

    E experts, of which each token uses k, evenly spread; 0 in a dense model, and where k is unknown.
    """
    if not shape.n_experts or not shape.n_experts_used:
        return 0.0
    return (1 - min(1.0, shape.n_experts_used / shape.n_experts)) ** tokens


def touched_linear_parameters(shape: ModelShape, tokens: int) -> float:
    """Parameters of the blocks' matrices that at least one of `tokens` tokens uses.

    All but the experts that none of them uses. A shape without files takes all matrices of a mixture
    for routed experts, except those of plain attention.
    """
    if not shape.n_experts:
        return shape.n_linear_parameters
    if shape.tensor_roles is not None:
        experts = shape.tensor_roles.expert_parameters
    else:
        attention = sum(
            shape.hidden_size
            * (2 * shape.n_heads * shape.head_dim_k + heads * (shape.head_dim_k + shape.head_dim_v))
            for heads in shape.kv_heads_by_layer
        )
        experts = shape.n_linear_parameters - min(attention, shape.n_linear_parameters)
    return shape.n_linear_parameters - experts * unused_share(shape, tokens)


def kv_read_bytes(shape: ModelShape, serving: Serving, tokens: float) -> float:
    """Bytes of K and V that one sequence of `tokens` tokens reads in a decoding step."""
    return sum(
        _attended(shape, layer, tokens) * kv_row_bytes(shape, serving, layer)
        for layer in range(len(shape.kv_heads_by_layer))
    )


def attention_flops(shape: ModelShape, tokens: float) -> float:
    """Operations of one token's attention to `tokens` others: Q x K and weights x V, 2 each."""
    return 2 * sum(attention_products(shape, tokens))


def attention_products(shape: ModelShape, tokens: float) -> tuple[float, float]:
    """Multiply-adds of one token's attention to `tokens` others: Q x K, and weights x V."""
    with_k = with_v = 0.0
    for layer, heads in enumerate(shape.kv_heads_by_layer):
        if heads:
            dim_k, dim_v = shape.head_dims(layer)
            attended = shape.n_heads * _attended(shape, layer, tokens)
            with_k += attended * dim_k
            with_v += attended * (dim_v or dim_k)
    return with_k, with_v


def _attended(shape: ModelShape, layer: int, tokens: float) -> float:
    """How many of `tokens` tokens a layer attends to: with a sliding window no more than it holds."""
    if shape.sliding_window is not None and shape.layer_slides(layer):
        return min(tokens, shape.sliding_window)
    return tokens
