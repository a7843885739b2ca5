"""Memory of a served model: weights, KV cache, compute buffers.

KV cache and compute buffers follow llama.cpp's own allocation. All sizes are bytes; GB are 10^9
bytes. `placement` says which GPUs hold it.
"""

from math import ceil
from typing import Final, Literal

from pydantic import BaseModel, ConfigDict, Field, computed_field

from quant_assets.capacity.reference_models import mixture_bits, nearest_reference
from quant_assets.capacity.transformer_graph import GraphSize, transformer_buffer_bytes
from quant_assets.errors import InputError
from quant_assets.formats.ggml_types import GgmlType, ggml_type
from quant_assets.formats.gguf_levels import parse_level
from quant_assets.formats.group_quantization import UNQUANTIZED_BITS, parse_group_quantization
from quant_assets.models.inspection import ModelShape

KV_CACHE_TYPES: Final = (
    "F32", "F16", "BF16", "Q8_0", "Q5_1", "Q5_0", "Q4_1", "Q4_0", "IQ4_NL",
)  # fmt: skip
"""The cache types that llama.cpp's command line accepts (`kv_cache_types` in common/arg.cpp)."""

MICRO_BATCH: Final = 512
"""Tokens per llama.cpp micro-batch (`n_ubatch`), its default."""

MAX_CONTEXT: Final = 100_000_000
MAX_BATCH: Final = 100_000
"""Bounds that catch typos; no model comes near them."""

_CELL_MULTIPLE = 256  # llama.cpp rounds the context of a sequence up to it (llama-context.cpp)
_F32_BYTES = 4


class Serving(BaseModel):
    """How a model is served: `batch` sequences at once, each of up to `context` tokens.

    `kv_type_k` and `kv_type_v` are the types of the KV cache.
    """

    model_config = ConfigDict(frozen=True)

    context: int = Field(default=8192, ge=1, le=MAX_CONTEXT)
    batch: int = Field(default=1, ge=1, le=MAX_BATCH)
    kv_type_k: str = "F16"
    kv_type_v: str = "F16"
    flash_attention: bool = True
    micro_batch: int = Field(default=MICRO_BATCH, ge=1)

    @property
    def cells(self) -> int:
        """Cache cells of one sequence: the context, rounded up as llama.cpp does."""
        return ceil(self.context / _CELL_MULTIPLE) * _CELL_MULTIPLE

    @property
    def micro_batch_tokens(self) -> int:
        """Tokens of the largest micro-batch: no more than all cells hold."""
        return min(self.micro_batch, self.cells * self.batch)


class Weights(BaseModel):
    """Bytes of a model's weights at one level, and the basis of the figure.

    `weight_type` is the type of most of them, as the speed model names it: a ggml type, `gptq-4bit`,
    `awq-4bit`. Engines of `checkpoint` formats keep the input embedding on the GPU, llama.cpp in host
    memory.
    """

    model_config = ConfigDict(frozen=True)

    level: str
    weights_bytes: int
    basis: str
    weight_type: str
    checkpoint: bool = False


MemoryBasis = Literal["llama.cpp's allocator", "arithmetic"]


class MemoryEstimate(BaseModel):
    """Memory of one served copy of a model, in bytes.

    `memory_basis` says where cache and buffers come from, and the weights too where their types are
    known; `memory_note` why not from the allocator. `shape`, `serving` and `weights` are what it was
    computed from, for the split over devices.
    """

    model_config = ConfigDict(frozen=True)

    model: str
    level: str
    basis: str
    n_parameters: int
    context: int
    batch: int
    kv_type_k: str
    kv_type_v: str
    weights_bytes: int
    kv_cache_bytes: int
    compute_bytes: int
    memory_basis: MemoryBasis = "arithmetic"
    memory_note: str | None = None
    shape: ModelShape = Field(exclude=True, repr=False)
    serving: Serving = Field(exclude=True, repr=False)
    weights: Weights = Field(exclude=True, repr=False)

    @computed_field  # type: ignore[prop-decorator]
    @property
    def bits_per_weight(self) -> float:
        """Bits of weight data per parameter."""
        return 8 * self.weights_bytes / self.n_parameters

    @computed_field  # type: ignore[prop-decorator]
    @property
    def total_bytes(self) -> int:
        """Weights, KV cache and compute buffers."""
        return self.weights_bytes + self.kv_cache_bytes + self.compute_bytes


def weights_at_level(shape: ModelShape, level: str) -> Weights:
    """Weights of `shape` at a GGUF level or a GPTQ or AWQ name, without its files.

    A GGUF level takes the bits of the published shape nearest in size; GPTQ and AWQ quantize the
    matrices inside the blocks and leave the rest at 16 bits. Raises `InputError` for an unknown
    level.
    """
    group = parse_group_quantization(level)
    if group is not None:
        linear_bits = shape.n_linear_parameters * group.bits_per_weight(
            shape.hidden_size, shape.hidden_size
        )
        other_bits = (shape.n_parameters - shape.n_linear_parameters) * UNQUANTIZED_BITS
        return Weights(
            level=group.name,
            weights_bytes=round((linear_bits + other_bits) / 8),
            basis="block layout; embeddings and norms at 16 bits",
            weight_type=f"{group.method}-{group.bits}bit",
            checkpoint=True,
        )
    parsed = parse_level(level)
    name = parsed.name
    reference = nearest_reference(shape.n_parameters)
    bits = mixture_bits(name, reference.name)
    return Weights(
        level=name,
        weights_bytes=round(shape.n_parameters * bits / 8),
        basis=f"{bits:.4f} bits per weight, as in llama.cpp's mixture on {reference.name}",
        weight_type=parsed.main_type,
    )


def estimate_memory(
    model: str, shape: ModelShape, weights: Weights, serving: Serving
) -> MemoryEstimate:
    """Add KV cache and compute buffers to `weights`; raises `InputError` for an unsupported cache type."""
    return MemoryEstimate(
        model=model,
        level=weights.level,
        basis=weights.basis,
        n_parameters=shape.n_parameters,
        context=serving.context,
        batch=serving.batch,
        kv_type_k=_kv_type(serving.kv_type_k).name,
        kv_type_v=_kv_type(serving.kv_type_v).name,
        weights_bytes=weights.weights_bytes,
        kv_cache_bytes=kv_cache_bytes(shape, serving),
        compute_bytes=compute_buffer_bytes(shape, serving),
        shape=shape,
        serving=serving,
        weights=weights,
    )


def kv_cache_bytes(shape: ModelShape, serving: Serving) -> int:
    """Bytes of the KV cache: a row of K and a row of V per layer, sequence and cell.

    A row holds all KV heads (grouped-query attention shares them among query heads). A layer with
    a sliding window keeps the window plus one micro-batch (`llama_kv_cache_iswa`).
    """
    if not serving.flash_attention and _kv_type(serving.kv_type_v).block_size > 1:
        raise InputError(
            f"A V cache of type {serving.kv_type_v} needs flash attention.",
            "llama.cpp refuses a quantized V cache without it.",
            "Turn it on with --flash-attention, or keep V in F16 with --kv-type-v f16.",
        )
    if shape.graph.latent is not None and _kv_type(serving.kv_type_k) != _kv_type(
        serving.kv_type_v
    ):
        raise InputError(
            f"The KV cache of this model cannot be {serving.kv_type_k} and {serving.kv_type_v}.",
            "With multi-head latent attention V is a part of K, and llama.cpp refuses two types.",
            "Use one type for both.",
        )
    return sum(layer_cache_bytes(shape, serving, layer) for layer in range(shape.n_layers))


def layer_cache_bytes(shape: ModelShape, serving: Serving, layer: int) -> int:
    """Bytes of the KV cache of one layer, for all sequences."""
    cells = _cells(shape, serving)[shape.layer_slides(layer)]
    return serving.batch * cells * kv_row_bytes(shape, serving, layer)


def kv_row_bytes(shape: ModelShape, serving: Serving, layer: int) -> int:
    """Bytes of one token's K and V in `layer`."""
    heads, (dim_k, dim_v) = shape.kv_heads(layer), shape.head_dims(layer)
    return _row_bytes(serving.kv_type_k, heads, dim_k) + _row_bytes(serving.kv_type_v, heads, dim_v)


def compute_buffer_bytes(shape: ModelShape, serving: Serving) -> int:
    """Bytes of llama.cpp's compute buffer and of the logits that it keeps per sequence.

    The buffer is reserved for the worst micro-batch; its tensors are laid out as ggml's allocator
    does (`graph_allocator`).
    """
    buffer_bytes = transformer_buffer_bytes(
        shape,
        GraphSize(
            tokens=serving.micro_batch_tokens,
            streams=serving.batch,
            cells=_cells(shape, serving),
            kv_type_k=_kv_type(serving.kv_type_k).name,
            kv_type_v=_kv_type(serving.kv_type_v).name,
            flash_attention=serving.flash_attention,
        ),
    )
    return buffer_bytes + _F32_BYTES * serving.batch * shape.vocab_size


def _cells(shape: ModelShape, serving: Serving) -> tuple[int, int]:
    """Cache cells of one sequence, in a layer without and in one with a sliding window."""
    cells = serving.cells
    if shape.sliding_window is None:
        return cells, cells
    kept = shape.sliding_window + serving.micro_batch_tokens
    return cells, ceil(min(cells, kept) / _CELL_MULTIPLE) * _CELL_MULTIPLE


def _kv_type(name: str) -> GgmlType:
    if name.strip().upper() not in KV_CACHE_TYPES:
        raise InputError(
            f"The KV cache cannot be of type {name!r}.",
            "llama.cpp does not support it.",
            f"Use one of {', '.join(kind.lower() for kind in KV_CACHE_TYPES)}.",
        )
    return ggml_type(name)


def _row_bytes(kv_type: str, kv_heads: int, head_dim: int) -> int:
    block = _kv_type(kv_type)
    if head_dim % block.block_size:
        raise InputError(
            f"The KV cache of this model cannot be of type {kv_type}.",
            f"Its head size of {head_dim} is not a multiple of the type's block size, {block.block_size}.",
            "Use f16 for this model.",
        )
    return block.row_bytes(kv_heads * head_dim) if kv_heads and head_dim else 0
