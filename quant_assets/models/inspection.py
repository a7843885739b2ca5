"""The shape of a model, read from its headers alone: no weight is loaded, no code of it is run."""

import json
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, Final

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from quant_assets.errors import InputError
from quant_assets.models.gguf_header import GgufHeader, read_gguf_header

_MAX_SAFETENSORS_HEADER_BYTES: Final = 100_000_000  # the limit of the safetensors format
_SAFETENSORS_BYTES: Final = {
    "F64": 8, "I64": 8, "U64": 8, "F32": 4, "I32": 4, "U32": 4, "F16": 2, "BF16": 2, "I16": 2,
    "U16": 2, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1, "I8": 1, "U8": 1, "BOOL": 1,
}  # fmt: skip
_QUANTIZATION_SIDE_TENSORS: Final = (".qzeros", ".scales", ".g_idx")
_ATTENTION_LAYERS: Final = {"full_attention", "sliding_attention", "chunked_attention", "attention"}


class ModelShape(BaseModel):
    """What a model's memory depends on. Counts are of numbers, not of bytes.

    `kv_heads_by_layer` holds 0 for a layer without attention. `head_dim_v` is 0 where V is a view
    of K (multi-head latent attention). `n_sliding_layers` layers keep only `sliding_window` tokens
    of their cache. `n_linear_parameters` counts the matrices inside the blocks, which every
    quantizer quantizes; embeddings, output head, norms and biases are the rest.
    """

    model_config = ConfigDict(frozen=True)

    architecture: str
    n_layers: int = Field(gt=0)
    hidden_size: int = Field(gt=0)
    intermediate_size: int = Field(ge=0)
    n_heads: int = Field(gt=0)
    kv_heads_by_layer: tuple[int, ...]
    head_dim_k: int = Field(gt=0)
    head_dim_v: int = Field(ge=0)
    vocab_size: int = Field(gt=0)
    context_length: int | None = None
    sliding_window: int | None = None
    n_sliding_layers: int = 0
    n_experts: int = 0
    n_experts_used: int = 0
    n_parameters: int = Field(gt=0)
    n_linear_parameters: int = Field(ge=0)
    weights_bytes: int | None = None
    """Bytes of the tensors' data as they are stored, None for a shape without files."""
    weight_types: dict[str, int] = Field(default_factory=dict)
    """Tensors by the type they are stored in."""

    @property
    def n_kv_heads(self) -> int:
        """Key and value heads of the layer that has most of them."""
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
            f"The model at {path} describes an impossible shape.",
            f"{error.errors()[0]['loc']}: {error.errors()[0]['msg']}.",
            "Check that it is a language model and that its configuration is whole.",
        ) from error


def _inspect_gguf(path: Path) -> ModelShape:
    header = read_gguf_header(path)
    architecture = header.values.get("general.architecture")
    if not isinstance(architecture, str):
        raise _missing(path, "general.architecture")
    parts = header.values.get("split.count", 0)
    if isinstance(parts, int) and parts > 1:
        raise InputError(
            f"The file {path} is one of {parts} parts of a model.",
            "Its header lists only its own tensors.",
            "Merge the parts with llama.cpp's gguf-split first.",
        )

    def number(key: str, default: int | None = None) -> int:
        value = header.values.get(f"{architecture}.{key}", default)
        if isinstance(value, tuple):
            value = max((int(item) for item in value), default=default)
        if value is None:
            raise _missing(path, f"{architecture}.{key}")
        return int(value)

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
        kv_heads_by_layer=_gguf_kv_heads(header, architecture, n_layers, n_heads),
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


def _gguf_kv_heads(
    header: GgufHeader, architecture: str, n_layers: int, n_heads: int
) -> tuple[int, ...]:
    heads = header.values.get(f"{architecture}.attention.head_count_kv", n_heads)
    if isinstance(heads, tuple):
        return tuple(int(count) for count in heads)
    return (int(heads),) * n_layers


def _gguf_sliding(header: GgufHeader, architecture: str, n_layers: int) -> tuple[int | None, int]:
    """The window and how many layers have it.

    Files of many architectures leave the pattern to the program; then all layers are taken as
    full, which overstates the cache and never understates it.
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
    config_path = folder / "config.json"
    try:
        config = json.loads(config_path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(
            f"The file {config_path} cannot be read.",
            f"{error}.",
            "Give a folder with config.json and safetensors files, or a GGUF file.",
        ) from error
    # Models that also see or hear keep the language model's part in `text_config`.
    text = config.get("text_config") if isinstance(config, dict) else None
    fields = {**config, **text} if isinstance(text, dict) else config
    if not isinstance(fields, dict):
        raise _missing(config_path, "model_type")

    def number(*keys: str, default: int | None = None) -> int:
        for key in keys:
            if isinstance(value := fields.get(key), int):
                return value
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
    if not isinstance(layer_types, list) or len(layer_types) != n_layers:
        layer_types = ["full_attention"] * n_layers
    sliding_window = fields.get("sliding_window")
    if not isinstance(sliding_window, int) or fields.get("use_sliding_window") is False:
        sliding_window = None
    quantization = fields.get("quantization_config")
    bits = quantization.get("bits") if isinstance(quantization, dict) else None
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
            tensor
            for path in _safetensors_files(folder)
            for tensor in _safetensors(path, bits if isinstance(bits, int) else None)
        ),
    )


def _safetensors_files(folder: Path) -> list[Path]:
    """The weight files of the model; a repository may carry a second copy in another layout."""
    index = folder / "model.safetensors.index.json"
    if index.exists():
        try:
            names = sorted(
                set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
            )
        except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
            raise InputError(
                f"The file {index} cannot be read.", f"{error}.", "Fetch the model again."
            ) from error
        # The index may name files only inside the folder.
        files = [folder / Path(str(name)).name for name in names]
    elif (single := folder / "model.safetensors").exists():
        files = [single]
    else:
        files = sorted(folder.glob("*.safetensors"))
    missing = [file.name for file in files if not file.exists()]
    if missing or not files:
        raise InputError(
            f"The folder {folder} lacks weight files.",
            f"Missing: {', '.join(missing) or 'any *.safetensors'}.",
            "Fetch the model again, or give a GGUF file.",
        )
    return files


def _safetensors(path: Path, packed_bits: int | None) -> list[_Tensor]:
    try:
        with path.open("rb") as stream:
            (length,) = struct.unpack("<Q", stream.read(8))
            if length > _MAX_SAFETENSORS_HEADER_BYTES:
                raise ValueError(f"its header claims {length} bytes")
            header: dict[str, Any] = json.loads(stream.read(length))
        return [
            _safetensors_tensor(name, entry, packed_bits)
            for name, entry in header.items()
            if name != "__metadata__"
        ]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, struct.error) as error:
        raise InputError(
            f"The safetensors file {path} cannot be read.",
            f"Its header is damaged or cut off: {error}.",
            "Fetch the file again.",
        ) from error


def _safetensors_tensor(name: str, entry: Mapping[str, Any], packed_bits: int | None) -> _Tensor:
    shape = [int(extent) for extent in entry["shape"]]
    stored = prod(shape)
    n_elements = stored
    if name.endswith(_QUANTIZATION_SIDE_TENSORS):
        n_elements = 0
    elif name.endswith(".qweight") and packed_bits:
        n_elements = stored * 32 // packed_bits  # packed into 32-bit integers
    inside_block = ".layers." in name or ".h." in name or ".blocks." in name
    return _Tensor(
        name=name,
        n_elements=n_elements,
        n_bytes=stored * _SAFETENSORS_BYTES[entry["dtype"]],
        is_linear=inside_block and sum(extent > 1 for extent in shape) >= 2,
        type_name=entry["dtype"],
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
    }


def _missing(path: Path, key: str) -> InputError:
    return InputError(
        f"The model at {path} does not say its {key}.",
        "That field is needed to count its memory.",
        "Check that it is a language model with a complete configuration.",
    )
