"""The shape of a model, read from headers only: no weight is loaded, none of its code runs."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from quant_assets.errors import InputError
from quant_assets.formats.gguf_header import (
    GgufHeader,
    Value,
    read_gguf_header,
    require_single_file,
)
from quant_assets.formats.group_quantization import PACKED_PARTS
from quant_assets.formats.safetensors_header import StoredTensor, tensors_of_folder
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
from quant_assets.models.stored_quantization import quantization_config

_PACKED_WEIGHT: Final = f".{PACKED_PARTS[0]}"
_PACKED_SIDE_TENSORS: Final = tuple(f".{part}" for part in PACKED_PARTS[1:])
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

    `kv_heads_by_layer` holds 0 for a layer without attention. `head_dim_v` is 0 where V is a view
    of K (multi-head latent attention). `n_sliding_layers` layers cache only the last
    `sliding_window` tokens. `n_linear_parameters` counts the matrices inside the blocks, which every
    quantizer quantizes; embeddings, output head, norms and biases are the rest.
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
    n_experts: int = Field(default=0, ge=0, le=MAX_EXPERTS)
    n_experts_used: int = Field(default=0, ge=0, le=MAX_EXPERTS)
    n_parameters: int = Field(gt=0)
    n_linear_parameters: int = Field(ge=0)
    weights_bytes: int | None = None
    """Bytes of the tensors' data as stored; None for a shape without files."""
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


@dataclass(frozen=True)
class _Tensor:
    name: str
    n_elements: int
    n_bytes: int
    is_linear: bool
    type_name: str


def inspect_model(path: Path) -> ModelShape:
    """The shape of the Hugging Face folder or GGUF file at `path`.

    Raises `InputError` when a file is missing, damaged, or does not describe a language model.
    """
    try:
        if path.is_dir():
            return _inspect_folder(path)
        return _inspect_gguf(path)
    except ValidationError as error:
        raise InputError(
            f"The model at {path} declares an impossible shape.",
            f"{error.errors()[0]['loc']}: {error.errors()[0]['msg']}.",
            "Check that it is a language model and that its configuration is complete.",
        ) from error


def _inspect_gguf(path: Path) -> ModelShape:
    header = read_gguf_header(path)
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
    sliding_window, n_sliding_layers = _gguf_sliding(header, architecture, n_layers)
    tensors = [
        _Tensor(
            name=tensor.name,
            n_elements=tensor.n_elements,
            n_bytes=tensor.n_bytes,
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
        kv_heads_by_layer=_by_layer(
            header.values.get(f"{architecture}.attention.head_count_kv", n_heads),
            n_layers,
            number("attention.head_count_kv", n_heads),
        ),
        head_dim_k=head_dim,
        head_dim_v=0 if latent else number("attention.value_length", head_dim),
        vocab_size=tokens if tokens else number("vocab_size"),
        context_length=number("context_length", 0) or None,
        sliding_window=sliding_window,
        n_sliding_layers=n_sliding_layers,
        n_experts=number("expert_count", 0),
        n_experts_used=number("expert_used_count", 0),
        **_totals(tensors),
    )


def _by_layer(value: Value, n_layers: int, largest: int) -> tuple[int, ...]:
    """The heads per layer, from one number for all or a list with the maximum `largest`."""
    if isinstance(value, tuple):
        return tuple(int(heads) for heads in value)
    return (largest,) * n_layers


def _gguf_sliding(header: GgufHeader, architecture: str, n_layers: int) -> tuple[int | None, int]:
    """The sliding window and the number of layers that use it.

    Files of many architectures leave the pattern to the runtime; all layers then count as full
    attention, which may overstate the cache but never understates it.
    """
    window = header.values.get(f"{architecture}.attention.sliding_window")
    pattern = header.values.get(f"{architecture}.attention.sliding_window_pattern")
    if not isinstance(window, int) or window <= 0:
        return None, 0
    if isinstance(pattern, tuple):
        return window, sum(bool(item) for item in pattern)
    if isinstance(pattern, int) and pattern > 1:
        return window, n_layers - n_layers // pattern
    return window, 0


def _inspect_folder(folder: Path) -> ModelShape:
    config_path = folder / CONFIG_NAME
    config = read_config(folder)
    fields = {**config, **text_config(config)}

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
    layer_types = fields.get("layer_types")
    if (
        not isinstance(layer_types, list)
        or len(layer_types) != n_layers
        or not all(isinstance(kind, str) for kind in layer_types)
    ):
        layer_types = ["full_attention"] * n_layers
    sliding_window = fields.get("sliding_window")
    if type(sliding_window) is not int or sliding_window <= 0:
        sliding_window = None  # some models disable it with -1
    if fields.get("use_sliding_window") is False:
        sliding_window = None
    quantization = quantization_config(config)
    return ModelShape(
        architecture=str(fields.get("model_type", "unknown")),
        n_layers=n_layers,
        hidden_size=hidden_size,
        intermediate_size=number("intermediate_size", "n_inner", default=4 * hidden_size),
        n_heads=n_heads,
        kv_heads_by_layer=tuple(
            n_kv_heads if kind in _ATTENTION_LAYERS else 0 for kind in layer_types
        ),
        head_dim_k=head_dim_k,
        head_dim_v=head_dim_v,
        vocab_size=number("vocab_size"),
        context_length=number("max_position_embeddings", "n_positions", default=0) or None,
        sliding_window=sliding_window,
        n_sliding_layers=layer_types.count("sliding_attention") if sliding_window else 0,
        n_experts=number("num_local_experts", "num_experts", "n_routed_experts", default=0),
        n_experts_used=number("num_experts_per_tok", default=0),
        **_totals(
            _safetensors_tensor(tensor, quantization.bits if quantization else None)
            for _, tensor in tensors_of_folder(folder).values()
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
