"""The shape of a model, read from headers only: no weight is loaded, none of its code runs."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from quant_assets.errors import InputError
from quant_assets.formats.gguf_header import (
    Value,
    read_gguf_header,
    require_single_file,
)
from quant_assets.formats.group_quantization import PACKED_PARTS
from quant_assets.formats.safetensors_header import StoredTensor, tensors_of_folder
from quant_assets.models.graph_traits import GraphTraits, LayerKind, gguf_traits, hf_traits
from quant_assets.models.hf_config import (
    CONFIG_NAME,
    LIMITS,
    MAX_CONTEXT_LENGTH,
    MAX_EXPERTS,
    MAX_HEADS,
    MAX_LAYERS,
    MAX_VOCABULARY,
    MAX_WIDTH,
    check_limit,
    count,
    read_config,
    text_config,
)
from quant_assets.models.sliding_windows import (
    gguf_sliding_window,
    hf_sliding_window,
    listed_layer_types,
)
from quant_assets.models.stored_quantization import quantization_config

GGUF_PADDING: Final = 32
"""Tensors of a GGUF file begin at multiples of it, and so they do in memory."""
_PACKED_WEIGHT: Final = f".{PACKED_PARTS[0]}"
_PACKED_SIDE_TENSORS: Final = tuple(f".{part}" for part in PACKED_PARTS[1:])
_HF_DEFAULTS: Final[Mapping[str, Mapping[str, Any]]] = {
    # Published configurations of Gemma 3 leave these to transformers.
    "gemma3_text": {
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 256,
        "vocab_size": 262_208,
        "max_position_embeddings": 131_072,
    },
    "gemma4_text": {"global_head_dim": 512},
}
_CACHES_FROM_START: Final = {"gemma3n": 20}
"""Layers with a cache of their own, where the file does not say so (llama.cpp's src/models/)."""
_ATTENTION_LAYERS: Final = {"full_attention", "sliding_attention", "chunked_attention", "attention"}
_INPUT_EMBEDDING: Final = re.compile(
    r"(?:^|\.)(?:token_embd|embed_tokens|wte|embed_in|word_embeddings)\.weight$"
)
_OUTPUT_HEAD: Final = re.compile(r"^output\.weight$|(?:^|\.)(?:lm_head|embed_out)\.weight$")
_LOOKUP_TABLE: Final = re.compile(
    r"(?:^|\.)(?:per_layer_token_embd|embed_tokens_per_layer)\.weight$"
)
"""Embeddings per layer (Gemma 3n), which no output head shares."""
_EXPERT: Final = re.compile(r"_exps\.|\.ffn_(?:gate|up|down)\.\d+\.|\.experts\.")
"""Routed experts in GGUF (stacked, and one by one in older files) and Hugging Face names; shared
experts, which every token uses, have other names."""


_LAYER: Final = re.compile(
    r"^(?:blk|(?:(?:model|language_model|text_model|transformer|gpt_neox|backbone|decoder)\.)*"
    r"(?:layers|h|blocks))\.(\d+)\."
)
"""The layers of the language model; those of other modalities are nested deeper."""


class LayerWeights(NamedTuple):
    """Bytes of one layer's weights; `experts` are those of which a router chooses some per token."""

    dense: int
    experts: int = 0


class TensorRoles(BaseModel):
    """What a pass reads of the stored tensors, by their roles.

    Of an input embedding that is not the output head as well (`lookup_bytes`) only the rows of the
    tokens are read; of the routed experts (`expert_bytes`, `expert_parameters`) only those chosen.
    `main_type` is the stored type of most weights.
    """

    model_config = ConfigDict(frozen=True)

    main_type: str
    lookup_bytes: int = Field(ge=0)
    expert_bytes: int = Field(ge=0)
    expert_parameters: int = Field(ge=0)


class ModelShape(BaseModel):
    """The figures that determine a model's memory. Counts are of numbers, not bytes.

    `kv_heads_by_layer` holds 0 for a layer without a cache of its own. `head_dim_v` is 0 where V is a
    view of K (multi-head latent attention). `n_sliding_layers` layers cache only the last
    `sliding_window` tokens; `sliding_layers` says which ones, the first ones where it is empty. Their
    heads may have sizes of their own. `n_linear_parameters` counts the matrices inside the blocks,
    which every quantizer quantizes; embeddings, output head, norms and biases are the rest.
    """

    model_config = ConfigDict(frozen=True)

    architecture: str
    n_layers: int = Field(gt=0, le=MAX_LAYERS)
    hidden_size: int = Field(gt=0, le=MAX_WIDTH)
    intermediate_size: int = Field(ge=0)
    n_heads: int = Field(gt=0, le=MAX_HEADS)
    kv_heads_by_layer: tuple[Annotated[int, Field(ge=0, le=MAX_HEADS)], ...] = Field(
        min_length=1, max_length=MAX_LAYERS
    )
    head_dim_k: int = Field(gt=0)
    head_dim_v: int = Field(ge=0)
    vocab_size: int = Field(gt=0, le=MAX_VOCABULARY)
    context_length: int | None = Field(default=None, gt=0, le=MAX_CONTEXT_LENGTH)
    sliding_window: int | None = Field(default=None, gt=0, le=MAX_CONTEXT_LENGTH)
    n_sliding_layers: int = Field(default=0, ge=0, le=MAX_LAYERS)
    sliding_layers: tuple[bool, ...] = Field(default=(), max_length=MAX_LAYERS)
    sliding_head_dims: tuple[int, int] | None = None
    """Sizes of a head of K and of V in a sliding layer, where they differ from the others."""
    graph: GraphTraits = GraphTraits()
    n_experts: int = Field(default=0, ge=0, le=MAX_EXPERTS)
    n_experts_used: int = Field(default=0, ge=0, le=MAX_EXPERTS)
    n_parameters: int = Field(gt=0)
    n_linear_parameters: int = Field(ge=0)
    weights_bytes: int | None = None
    """Bytes of the tensors' data as stored, in GGUF with their padding; None without files."""
    weight_types: dict[str, int] = Field(default_factory=dict)
    """Number of tensors by stored type."""
    tensor_roles: TensorRoles | None = None
    """What a pass reads of the stored tensors; None for a shape without files."""
    layer_weights: tuple[LayerWeights, ...] = ()
    """Stored bytes of each layer, in order; empty for a shape without files."""

    @property
    def n_kv_heads(self) -> int:
        """Key and value heads of the layer with the most."""
        return max(self.kv_heads_by_layer)

    @property
    def slides(self) -> bool:
        """Whether any layer has a sliding window."""
        return self.sliding_window is not None and self.n_sliding_layers > 0

    def kv_heads(self, layer: int) -> int:
        """Key and value heads of a layer; 0 without a cache of its own."""
        return self.kv_heads_by_layer[layer] if layer < len(self.kv_heads_by_layer) else 0

    def layer_slides(self, layer: int) -> bool:
        """Whether a layer caches only the last `sliding_window` tokens."""
        if self.sliding_window is None:
            return False
        if self.sliding_layers:
            return layer < len(self.sliding_layers) and self.sliding_layers[layer]
        return layer < self.n_sliding_layers

    def head_dims(self, layer: int) -> tuple[int, int]:
        """Sizes of a head of K and of V in a layer; V's is 0 where it is a view of K."""
        if self.sliding_head_dims is not None and self.layer_slides(layer):
            return self.sliding_head_dims
        return self.head_dim_k, self.head_dim_v

    def layer_kind(self, layer: int) -> LayerKind:
        """The feed-forward part of a layer."""
        if not self.n_experts or layer in self.graph.dense_layers:
            return LayerKind.DENSE
        return LayerKind.EXPERTS


@dataclass(frozen=True)
class _Tensor:
    name: str
    n_elements: int
    n_bytes: int
    is_linear: bool
    type_name: str


def inspect_model(path: Path, *, require_data: bool = True) -> ModelShape:
    """The shape of the Hugging Face folder or GGUF file at `path`.

    Without `require_data` a GGUF file may end after its header. Raises `InputError` when a file is missing, damaged, or does not describe a language model.
    """
    try:
        if path.is_dir():
            return _inspect_folder(path)
        return _inspect_gguf(path, require_data)
    except ValidationError as error:
        raise InputError(
            f"The model at {path} declares an impossible shape.",
            f"{error.errors()[0]['loc']}: {error.errors()[0]['msg']}.",
            "Check that it is a language model and that its configuration is complete.",
        ) from error


def _inspect_gguf(path: Path, require_data: bool) -> ModelShape:
    header = read_gguf_header(path, require_data=require_data)
    architecture = header.values.get("general.architecture")
    if not isinstance(architecture, str):
        raise _missing(path, "general.architecture")
    require_single_file(header, path)

    def number(key: str, default: int | None = None) -> int:
        name = f"{architecture}.{key}"
        if name not in header.values:
            if default is None:
                raise _missing(path, name)
            return default
        check_limit(header.values[name], LIMITS[key], name, path)
        return count(header.values[name], name, path)

    n_layers = number("block_count")
    hidden_size = number("embedding_length")
    n_heads = number("attention.head_count")
    head_dim = number("attention.key_length", hidden_size // max(1, n_heads))
    latent = f"{architecture}.attention.key_length_mla" in header.values
    head_dim_v = 0 if latent else number("attention.value_length", head_dim)
    sliding = gguf_sliding_window(
        architecture,
        header.values.get(f"{architecture}.attention.sliding_window"),
        header.values.get(f"{architecture}.attention.sliding_window_pattern"),
        n_layers,
    )
    sliding_dims = (
        number("attention.key_length_swa", head_dim),
        number("attention.value_length_swa", head_dim_v) if head_dim_v else 0,
    )
    kv_heads = _by_layer(
        header.values.get(f"{architecture}.attention.head_count_kv", n_heads),
        n_layers,
        number("attention.head_count_kv", n_heads),
    )
    own_cache = n_layers - number("attention.shared_kv_layers", 0)
    if architecture in _CACHES_FROM_START:
        own_cache = min(n_layers, _CACHES_FROM_START[architecture])
    tensors = [
        _Tensor(
            name=tensor.name,
            n_elements=tensor.n_elements,
            n_bytes=-(-tensor.n_bytes // GGUF_PADDING) * GGUF_PADDING,
            is_linear=tensor.name.startswith("blk.") and sum(d > 1 for d in tensor.shape) >= 2,
            type_name=tensor.type_name,
        )
        for tensor in header.tensors
    ]
    tokens = header.array_lengths.get("tokenizer.ggml.tokens")
    return ModelShape(
        architecture=architecture,
        n_layers=n_layers,
        hidden_size=hidden_size,
        intermediate_size=number("feed_forward_length", 0),
        n_heads=n_heads,
        kv_heads_by_layer=kv_heads[:own_cache] + (0,) * (len(kv_heads) - own_cache),
        head_dim_k=head_dim,
        head_dim_v=head_dim_v,
        vocab_size=tokens if tokens else number("vocab_size"),
        context_length=number("context_length", 0) or None,
        sliding_window=sliding.tokens,
        n_sliding_layers=sum(sliding.layers),
        sliding_layers=sliding.layers if any(sliding.layers) else (),
        sliding_head_dims=sliding_dims if sliding_dims != (head_dim, head_dim_v) else None,
        graph=gguf_traits(
            architecture,
            header.values,
            {tensor.name: tensor.shape for tensor in header.tensors},
            n_layers=n_layers,
            width=number("feed_forward_length", 0),
        ),
        n_experts=number("expert_count", 0),
        n_experts_used=number("expert_used_count", 0),
        **_totals(tensors),
    )


def _by_layer(value: Value, n_layers: int, largest: int) -> tuple[int, ...]:
    """The heads per layer, from one number for all or a list with the maximum `largest`."""
    listed = tuple(int(heads) for heads in value) if isinstance(value, tuple) else ()
    return (*listed, *(largest,) * n_layers)[:n_layers]


def _inspect_folder(folder: Path) -> ModelShape:
    config_path = folder / CONFIG_NAME
    config = read_config(folder)
    fields = {**config, **text_config(config)}
    fields = {**_HF_DEFAULTS.get(str(fields.get("model_type")), {}), **fields}

    def number(*keys: str, default: int | None = None) -> int:
        for key in keys:
            if fields.get(key) is not None:
                return count(fields[key], key, config_path)
        if default is None:
            raise _missing(config_path, keys[0])
        return default

    n_layers = number("num_hidden_layers", "n_layer", "num_layers")
    hidden_size = number("hidden_size", "n_embd", "d_model")
    n_heads = number("num_attention_heads", "n_head")
    n_kv_heads = number("num_key_value_heads", "multi_query_group_num", default=n_heads)
    head_dim_k = head_dim_v = number("head_dim", default=hidden_size // max(1, n_heads))
    if latent_rank := number("kv_lora_rank", default=0):
        # Multi-head latent attention: one compressed row a token, of which V is a view.
        n_kv_heads, head_dim_v = 1, 0
        head_dim_k = latent_rank + number("qk_rope_head_dim", default=0)
    sliding_head_dims = None
    full_kv_heads = n_kv_heads
    if global_dim := number("global_head_dim", default=0):  # layers without a window have their own
        sliding_head_dims = (head_dim_k, head_dim_v)
        head_dim_k = head_dim_v = global_dim
        if fields.get("attention_k_eq_v"):
            full_kv_heads = number("num_global_key_value_heads", default=n_kv_heads)
    layer_types = listed_layer_types(fields, n_layers) or ["full_attention"] * n_layers
    sliding = hf_sliding_window(fields, n_layers)
    shared = number("num_kv_shared_layers", default=0)
    width = number("intermediate_size", "n_inner", default=4 * hidden_size)
    stored = {tensor.name: tensor for _, tensor in tensors_of_folder(folder).values()}
    quantization = quantization_config(config)
    return ModelShape(
        architecture=str(fields.get("model_type", "unknown")),
        n_layers=n_layers,
        hidden_size=hidden_size,
        intermediate_size=width,
        n_heads=n_heads,
        kv_heads_by_layer=tuple(
            (n_kv_heads if sliding.layers[layer] else full_kv_heads)
            if kind in _ATTENTION_LAYERS and layer < n_layers - shared
            else 0
            for layer, kind in enumerate(layer_types)
        ),
        head_dim_k=head_dim_k,
        head_dim_v=head_dim_v,
        vocab_size=number("vocab_size"),
        context_length=number("max_position_embeddings", "n_positions", default=0) or None,
        sliding_window=sliding.tokens,
        n_sliding_layers=sum(sliding.layers),
        sliding_layers=sliding.layers if any(sliding.layers) else (),
        sliding_head_dims=sliding_head_dims,
        graph=hf_traits(
            fields,
            {name: tensor.shape for name, tensor in stored.items()},
            n_layers=n_layers,
            width=width,
        ),
        n_experts=number("num_local_experts", "num_experts", "n_routed_experts", default=0),
        n_experts_used=number("num_experts_per_tok", default=0),
        **_totals(
            _safetensors_tensor(tensor, quantization.bits if quantization else None)
            for tensor in stored.values()
        ),
    )


def _safetensors_tensor(tensor: StoredTensor, packed_bits: int | None) -> _Tensor:
    n_elements = tensor.n_elements
    if tensor.name.endswith(_PACKED_SIDE_TENSORS):
        n_elements = 0
    elif tensor.name.endswith(_PACKED_WEIGHT) and packed_bits:
        n_elements = n_elements * 32 // packed_bits  # packed into 32-bit integers
    inside_block = any(part in tensor.name for part in (".layers.", ".h.", ".blocks."))
    return _Tensor(
        name=tensor.name,
        n_elements=n_elements,
        n_bytes=tensor.n_bytes,
        is_linear=inside_block and sum(extent > 1 for extent in tensor.shape) >= 2,
        type_name=tensor.dtype,
    )


def _totals(tensors: Iterable[_Tensor]) -> dict[str, Any]:
    listed = list(tensors)
    types: dict[str, int] = {}
    for tensor in listed:
        types[tensor.type_name] = types.get(tensor.type_name, 0) + 1
    return {
        "n_parameters": sum(tensor.n_elements for tensor in listed),
        "n_linear_parameters": sum(tensor.n_elements for tensor in listed if tensor.is_linear),
        "weights_bytes": sum(tensor.n_bytes for tensor in listed),
        "weight_types": types,
        "tensor_roles": _roles(listed) if listed else None,
        "layer_weights": _layers(listed),
    }


def _roles(tensors: Sequence[_Tensor]) -> TensorRoles:
    weights_by_type: dict[str, int] = {}
    for tensor in tensors:
        weights_by_type[tensor.type_name] = (
            weights_by_type.get(tensor.type_name, 0) + tensor.n_elements
        )
    experts = [tensor for tensor in tensors if _EXPERT.search(tensor.name)]
    has_head = any(_OUTPUT_HEAD.search(tensor.name) for tensor in tensors)
    return TensorRoles(
        main_type=max(weights_by_type, key=lambda name: weights_by_type[name]),
        lookup_bytes=sum(
            tensor.n_bytes
            for tensor in tensors
            if (has_head and _INPUT_EMBEDDING.search(tensor.name))
            or _LOOKUP_TABLE.search(tensor.name)
        ),
        expert_bytes=sum(tensor.n_bytes for tensor in experts),
        expert_parameters=sum(tensor.n_elements for tensor in experts if tensor.is_linear),
    )


def _layers(tensors: Sequence[_Tensor]) -> tuple[LayerWeights, ...]:
    sizes: dict[int, tuple[int, int]] = {}
    for tensor in tensors:
        if (layer := _LAYER.match(tensor.name)) is None:
            continue
        number = min(int(layer[1]), MAX_LAYERS - 1)
        dense, experts = sizes.get(number, (0, 0))
        if _EXPERT.search(tensor.name):
            sizes[number] = dense, experts + tensor.n_bytes
        else:
            sizes[number] = dense + tensor.n_bytes, experts
    return tuple(LayerWeights(*sizes.get(n, (0, 0))) for n in range(max(sizes, default=-1) + 1))


def _missing(path: Path, key: str) -> InputError:
    return InputError(
        f"The model at {path} does not declare its {key}.",
        "Its memory cannot be computed without that field.",
        "Check that it is a language model with a complete configuration.",
    )
