"""The part of llama.cpp's C API that these workers use: models, contexts, batches, the log."""

import ctypes
import importlib.metadata
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import llama_cpp

from quant_assets.errors import EnvironmentNotReady, InputError, ResourceError
from quant_assets.formats.ggml_types import GGML_TYPES
from quant_assets.host.devices import Device
from quant_assets.models.integrity import check_gguf

_LOG_LEVEL_WARNING = 3
_KV_SIZE = re.compile(r"KV buffer size =\s*([0-9.]+) MiB")
_ALL_LAYERS = -1

# llama.cpp keeps a raw pointer to its log callback and logs until the process ends.
_callbacks: list[object] = []


class NativeLog:
    """Collects llama.cpp's log; warnings and errors also go to standard error."""

    def __init__(self) -> None:
        self.lines: list[str] = []

        @llama_cpp.llama_log_callback  # type: ignore[untyped-decorator, unused-ignore]
        def callback(level: int, text: bytes, _: object) -> None:
            line = text.decode("utf-8", errors="replace")
            self.lines.append(line)
            if level >= _LOG_LEVEL_WARNING:
                sys.stderr.write(line)

        llama_cpp.llama_log_set(callback, ctypes.c_void_p(0))
        _callbacks.append(callback)

    def kv_cache_bytes(self) -> int | None:
        """Sum of the KV buffer sizes from the log, which rounds each to 0.01 MiB."""
        sizes = [float(size) for size in _KV_SIZE.findall("".join(self.lines))]
        return round(sum(sizes) * 2**20) if sizes else None


def library_versions() -> dict[str, str]:
    """The versions of the binding and of llama.cpp itself."""
    return {
        "llama-cpp-python": importlib.metadata.version("llama-cpp-python"),
        "llama.cpp": llama_cpp.llama_version().decode(),
    }


def ggml_type(name: str) -> int:
    """The ggml type of a lower-case name such as `q8_0`."""
    return int(getattr(llama_cpp, f"GGML_TYPE_{name.upper()}"))


def needs_flash_attention(cache_type_v: str) -> bool:
    """Whether the V cache is quantized, which llama.cpp supports with flash attention only."""
    return cache_type_v not in ("f32", "f16", "bf16")


def resolve_device(device: Device) -> str:
    """`cpu` or `cuda` for `auto`; raise `EnvironmentNotReady` if this build lacks GPU support."""
    can_offload = bool(llama_cpp.llama_supports_gpu_offload())
    if device == "cuda" and not can_offload:
        raise EnvironmentNotReady(
            "llama.cpp cannot use a GPU here.",
            "The installed llama-cpp-python was built without a GPU backend.",
            "Rebuild it with CMAKE_ARGS='-DGGML_CUDA=ON', or use the device cpu.",
        )
    return "cuda" if can_offload and device != "cpu" else "cpu"


@contextmanager
def loaded_model(path: str, device: str) -> Iterator[Any]:
    """A model loaded from a GGUF file; raises `InputError` if it is damaged or llama.cpp rejects it."""
    if not Path(path).is_file():
        raise InputError(
            f"There is no model file {path}.",
            "The artifact may have been moved or deleted.",
            "Rebuild the artifact.",
        )
    try:
        check_gguf(Path(path))
    except InputError as error:
        raise InputError(
            f"llama.cpp cannot load {path}.", f"{error.what} {error.why}", error.next_step
        ) from error
    llama_cpp.llama_backend_init()
    params = llama_cpp.llama_model_default_params()
    params.n_gpu_layers = _ALL_LAYERS if device == "cuda" else 0
    model = llama_cpp.llama_model_load_from_file(path.encode(), params)
    if not model:
        raise InputError(
            f"llama.cpp cannot load {path}.",
            "The file is damaged, or this version does not support its architecture.",
            "Check the file's hash against its manifest, or rebuild the artifact.",
        )
    try:
        yield model
    finally:
        llama_cpp.llama_model_free(model)


@contextmanager
def context(
    model: Any,
    *,
    tokens_per_sequence: int,
    sequences: int,
    threads: int,
    batch_tokens: int = 2048,
    cache_type_k: str = "f16",
    cache_type_v: str = "f16",
) -> Iterator[Any]:
    """A context for `sequences` sequences of `tokens_per_sequence` tokens each.

    Everything else is llama.cpp's default, as in its own tools, except that a quantized V cache
    forces flash attention on.
    """
    params = llama_cpp.llama_context_default_params()
    params.n_ctx = tokens_per_sequence * sequences
    params.n_batch = min(batch_tokens, params.n_ctx)
    params.n_seq_max = sequences
    params.n_threads = threads
    params.n_threads_batch = threads
    params.type_k = ggml_type(cache_type_k)
    params.type_v = ggml_type(cache_type_v)
    params.kv_unified = False
    params.swa_full = False  # the default of the API, but not of the tools, is a whole window cache
    if needs_flash_attention(cache_type_v):
        params.flash_attn_type = llama_cpp.LLAMA_FLASH_ATTN_TYPE_ENABLED
    native = llama_cpp.llama_init_from_model(model, params)
    if not native:
        raise ResourceError(
            "llama.cpp cannot create a context for this model.",
            f"It rejected {sequences} sequences of {tokens_per_sequence} tokens with a KV cache in "
            f"{cache_type_k} and {cache_type_v}.",
            "Use a smaller batch, or cache types whose blocks divide the model's head size.",
        )
    try:
        yield native
    finally:
        llama_cpp.llama_free(native)


class Batch:
    """A reusable llama_batch of at most `capacity` tokens."""

    def __init__(self, capacity: int) -> None:
        self._native = llama_cpp.llama_batch_init(capacity, 0, 1)
        self._native.n_tokens = 0

    def clear(self) -> None:
        """Remove all tokens."""
        self._native.n_tokens = 0

    def add(self, token: int, position: int, sequence: int, *, logits: bool) -> None:
        """Append one token of a sequence; `logits` requests its output."""
        native, index = self._native, self._native.n_tokens
        native.token[index] = token
        native.pos[index] = position
        native.n_seq_id[index] = 1
        native.seq_id[index][0] = sequence
        native.logits[index] = logits
        native.n_tokens = index + 1

    def decode(self, native_context: Any) -> None:
        """Compute the batch and wait for the result; raise `ResourceError` if it does not fit."""
        status = llama_cpp.llama_decode(native_context, self._native)
        if status != 0:
            raise ResourceError(
                "llama.cpp could not decode a batch.",
                f"llama_decode returned {status}; 1 means that the KV cache is full.",
                "Use a smaller batch or shorter prompts.",
            )
        llama_cpp.llama_synchronize(native_context)

    def free(self) -> None:
        """Free the memory."""
        llama_cpp.llama_batch_free(self._native)


def tokenize(model: Any, text: str) -> list[int]:
    """Tokens of a text, with the special tokens that the model adds (such as BOS)."""
    vocabulary = llama_cpp.llama_model_get_vocab(model)
    encoded = text.encode()
    capacity = len(encoded) + 2
    tokens = (llama_cpp.llama_token * capacity)()
    count = llama_cpp.llama_tokenize(
        vocabulary, encoded, len(encoded), tokens, capacity, True, False
    )
    if count < 0:
        raise InputError(
            "The text cannot be tokenized.",
            f"llama_tokenize returned {count}.",
            "Use a shorter text.",
        )
    return list(tokens[:count])


def metadata_int(model: Any, key_suffix: str) -> int | None:
    """An integer of the model's metadata, `<architecture>.<key_suffix>`."""
    architecture = metadata_text(model, "general.architecture")
    value = metadata_text(model, f"{architecture}.{key_suffix}")
    return int(value) if value is not None and value.isdigit() else None


def metadata_text(model: Any, key: str) -> str | None:
    """A value of the model's metadata as text."""
    buffer = ctypes.create_string_buffer(1024)
    length = llama_cpp.llama_model_meta_val_str(model, key.encode(), buffer, len(buffer))
    return buffer.value.decode(errors="replace") if length >= 0 else None


def kv_cache_arithmetic(model: Any, cells: int, cache_types: Sequence[str]) -> int | None:
    """Bytes of a KV cache of `cells` tokens: layers x cells x (K row + V row).

    A row holds `n_head_kv x head size` values in blocks of its ggml type. None for a model with
    another kind of state (recurrent, hybrid) or sliding-window attention.
    """
    other_state = (
        llama_cpp.llama_model_is_recurrent(model)
        or llama_cpp.llama_model_is_hybrid(model)
        or llama_cpp.llama_model_n_swa(model) > 0
    )
    heads = llama_cpp.llama_model_n_head_kv(model)
    if other_state or heads <= 0:
        return None
    default_head = llama_cpp.llama_model_n_embd(model) // llama_cpp.llama_model_n_head(model)
    sizes = [
        metadata_int(model, f"attention.{part}_length") or default_head for part in ("key", "value")
    ]
    rows = [
        GGML_TYPES[name.upper()].row_bytes(heads * size)
        for name, size in zip(cache_types, sizes, strict=True)
    ]
    return int(llama_cpp.llama_model_n_layer(model) * cells * sum(rows))
