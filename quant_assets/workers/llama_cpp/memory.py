"""Worker: the buffers that llama.cpp reserves for a model, from its header alone.

With `no_alloc` llama.cpp loads metadata and simulates every allocation; its own `--fit` relies on the
same figures. They are read through `llama_get_memory_breakdown` of src/llama-ext.h.
"""

import ctypes
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import llama_cpp
from llama_cpp import llama_cpp as bindings

from quant_assets.capacity.allocator import (
    Allocation,
    AllocationJob,
    AllocationResult,
    DeviceAllocation,
)
from quant_assets.capacity.memory import Serving
from quant_assets.errors import EnvironmentNotReady, InputError
from quant_assets.formats.gguf_header import with_room_for_data
from quant_assets.processes.protocol import EventChannel, serve
from quant_assets.workers.gguf import ggml
from quant_assets.workers.llama_cpp.native import library_versions, resolve_device

ASK: Final = "asking llama.cpp's allocator"
_BREAKDOWN: Final = "_Z26llama_get_memory_breakdownPK13llama_context"
_BATCH_TOKENS: Final = 2048  # llama.cpp's default `n_batch`
_BYTES_PER_LOGIT: Final = 4


class _Map(ctypes.Structure):
    """A `std::map` returned by value: six words in libstdc++, three in libc++.

    The root of its tree is the word `_ROOT_WORD`, the header's parent pointer or the end node's left.
    """

    _fields_ = (("words", ctypes.c_void_p * 6),)


class _Node(ctypes.Structure):
    """A node of the tree, of either library: links and colour take four words, the pair follows."""

    _fields_ = (
        ("links", ctypes.c_void_p * 4),
        ("buffer_type", ctypes.c_void_p),
        ("model", ctypes.c_size_t),
        ("context", ctypes.c_size_t),
        ("compute", ctypes.c_size_t),
    )


_LIBCXX: Final = hasattr(ctypes.CDLL(None), "_ZNSt3__15mutex4lockEv")
_ROOT_WORD: Final = 1 if _LIBCXX else 2
_CHILDREN: Final = (0, 1) if _LIBCXX else (2, 3)


def allocate(job: AllocationJob, channel: EventChannel) -> AllocationResult:
    """Load the model once, and reserve a context for every serving."""
    device = resolve_device(job.device)
    allocations: list[Allocation] = []
    with tempfile.TemporaryDirectory(prefix="quant-assets-") as folder:
        # llama.cpp refuses a file that ends before its tensors, even where it never reads them.
        path = job.model
        if job.mode == "planned":
            path = with_room_for_data(path, Path(folder))
        with _model(path, device, job.mode) as model:
            for number, serving in enumerate(job.servings):
                channel.progress(ASK, number, len(job.servings), "points")
                allocations.append(_allocation(model, serving))
    channel.progress(ASK, len(job.servings), len(job.servings), "points")
    return AllocationResult(allocations=allocations, library_versions=library_versions())


@contextmanager
def _model(path: Path, device: str, mode: str) -> Iterator[Any]:
    parameters = llama_cpp.llama_model_default_params()
    parameters.load_mode = llama_cpp.LLAMA_LOAD_MODE_NONE
    parameters.no_alloc = mode == "planned"
    parameters.use_extra_bufts = False
    parameters.n_gpu_layers = -1 if device == "cuda" else 0
    with ggml.captured_log() as log:
        llama_cpp.llama_backend_init()
        model = llama_cpp.llama_model_load_from_file(str(path).encode(), parameters)
    if not model:
        raise InputError(
            "llama.cpp cannot load this model.",
            ggml.reported_error(log),
            "Check that its architecture is one that the pinned llama.cpp knows.",
        )
    try:
        yield model
    finally:
        llama_cpp.llama_model_free(model)


def _allocation(model: Any, serving: Serving) -> Allocation:
    parameters = llama_cpp.llama_context_default_params()
    parameters.n_ctx = serving.cells * serving.batch
    parameters.n_seq_max = serving.batch
    parameters.n_ubatch = serving.micro_batch
    parameters.n_batch = max(_BATCH_TOKENS, serving.micro_batch)
    parameters.kv_unified = False
    parameters.swa_full = False  # as in llama.cpp's own programs
    parameters.flash_attn_type = int(serving.flash_attention)
    parameters.type_k = ggml.type_of_name(serving.kv_type_k)
    parameters.type_v = ggml.type_of_name(serving.kv_type_v)
    with ggml.captured_log() as log:
        context = llama_cpp.llama_init_from_model(model, parameters)
    if not context:
        raise InputError(
            f"llama.cpp refuses {serving.batch} sequences of {serving.context} tokens for this model.",
            _last_line(log),
            "Choose a context, a batch and cache types that it supports.",
        )
    try:
        tokens = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(model))
        return Allocation(
            devices=_breakdown(context), logits_bytes=_BYTES_PER_LOGIT * tokens * serving.batch
        )
    finally:
        llama_cpp.llama_free(context)


def _last_line(log: Sequence[str]) -> str:
    """The last thing that llama.cpp said, where it names the reason of a refusal."""
    lines = [line for line in "".join(log).splitlines() if line.strip()]
    return f"It reports: {lines[-1]}." if lines else "It reports no reason."


def _breakdown(context: Any) -> list[DeviceAllocation]:
    """The context's memory by buffer type."""
    base = ggml.base_library()
    base.ggml_backend_buft_name.restype = ctypes.c_char_p
    base.ggml_backend_buft_name.argtypes = [ctypes.c_void_p]
    base.ggml_backend_buft_is_host.restype = ctypes.c_bool
    base.ggml_backend_buft_is_host.argtypes = [ctypes.c_void_p]
    return [
        DeviceAllocation(
            buffer=base.ggml_backend_buft_name(node.buffer_type).decode(),
            is_host=base.ggml_backend_buft_is_host(node.buffer_type),
            weights_bytes=node.model,
            state_bytes=node.context,
            compute_bytes=node.compute,
        )
        for node in _nodes(_breakdown_function()(context).words[_ROOT_WORD])
    ]


def _breakdown_function() -> Any:
    library = bindings._lib
    if not hasattr(library, _BREAKDOWN):
        raise EnvironmentNotReady(
            "This build of llama.cpp does not report its memory.",
            "Its library does not export llama_get_memory_breakdown.",
            "Install the pinned llama-cpp-python with `python3 environments/bootstrap.py main`.",
        )
    function = getattr(library, _BREAKDOWN)
    function.restype, function.argtypes = _Map, [ctypes.c_void_p]
    return function


def _nodes(address: int | None) -> Iterator[_Node]:
    """The nodes of the tree at `address`, in the order of its keys."""
    if address:
        node = _Node.from_address(address)
        left, right = (node.links[index] for index in _CHILDREN)
        yield from _nodes(left)
        yield node
        yield from _nodes(right)


if __name__ == "__main__":
    serve(AllocationJob, allocate, sample_memory=False)
