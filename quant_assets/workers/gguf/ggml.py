"""ctypes bindings to the ggml and llama libraries that ship with llama-cpp-python.

Only what the engine needs: conversion of rows between types, the GGUF container, and the log.
"""

import ctypes
import importlib.util
import logging
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, Final

from quant_assets.errors import EnvironmentNotReady, InputError

logger = logging.getLogger(__name__)

MAX_DIMS: Final = 4  # GGML_MAX_DIMS
F32: Final = 0  # enum ggml_type
F16: Final = 1
BF16: Final = 30
FLOAT_TYPES: Final = frozenset({F32, F16, BF16})

_MAX_SOURCES = 10  # GGML_MAX_SRC
_MAX_OP_PARAMS_BYTES = 64  # GGML_MAX_OP_PARAMS
_MAX_NAME = 64  # GGML_MAX_NAME
_OBJECT_BYTES = 32  # sizeof(struct ggml_object)
_KV_STRING = 8  # enum gguf_type
_LOG_ERROR = 3  # enum ggml_log_level
_LOG_CONTINUE = 5


class Tensor(ctypes.Structure):
    """`struct ggml_tensor` of ggml.h."""


Tensor._fields_ = [
    ("type", ctypes.c_int),
    ("buffer", ctypes.c_void_p),
    ("ne", ctypes.c_int64 * MAX_DIMS),
    ("nb", ctypes.c_size_t * MAX_DIMS),
    ("op", ctypes.c_int),
    ("op_params", ctypes.c_uint8 * _MAX_OP_PARAMS_BYTES),
    ("flags", ctypes.c_int32),
    ("src", ctypes.POINTER(Tensor) * _MAX_SOURCES),
    ("view_src", ctypes.c_void_p),
    ("view_offs", ctypes.c_size_t),
    ("data", ctypes.c_void_p),
    ("name", ctypes.c_char * _MAX_NAME),
    ("extra", ctypes.c_void_p),
    ("padding", ctypes.c_uint8 * 8),
]
TensorPointer = ctypes.POINTER(Tensor)


class _InitParams(ctypes.Structure):
    _fields_ = (("no_alloc", ctypes.c_bool), ("ctx", ctypes.POINTER(ctypes.c_void_p)))


_P, _I, _L, _Z, _S = (
    ctypes.c_void_p,
    ctypes.c_int,
    ctypes.c_int64,
    ctypes.c_size_t,
    ctypes.c_char_p,
)
_SIGNATURES: Final[dict[str, tuple[Any, list[Any]]]] = {
    "ggml_type_name": (_S, [_I]),
    "ggml_row_size": (_Z, [_I, _L]),
    "ggml_tensor_overhead": (_Z, []),
    "ggml_get_tensor": (TensorPointer, [_P, _S]),
    "ggml_op_name": (_S, [_I]),
    "ggml_free": (None, [_P]),
    "ggml_quantize_init": (None, [_I]),
    "ggml_quantize_chunk": (_Z, [_I, _P, _P, _L, _L, _L, _P]),
    "ggml_validate_row_data": (ctypes.c_bool, [_I, _P, _Z]),
    "ggml_fp16_to_fp32_row": (None, [_P, _P, _L]),
    "ggml_bf16_to_fp32_row": (None, [_P, _P, _L]),
    "ggml_fp32_to_bf16_row_ref": (None, [_P, _P, _L]),
    "ggml_backend_tensor_get": (None, [TensorPointer, _P, _Z, _Z]),
    "gguf_init_from_file": (_P, [_S, _InitParams]),
    "gguf_init_empty": (_P, []),
    "gguf_free": (None, [_P]),
    "gguf_find_key": (_L, [_P, _S]),
    "gguf_get_kv_type": (_I, [_P, _L]),
    "gguf_get_val_str": (_S, [_P, _L]),
    "gguf_get_data_offset": (_Z, [_P]),
    "gguf_get_n_tensors": (_L, [_P]),
    "gguf_get_tensor_name": (_S, [_P, _L]),
    "gguf_get_tensor_offset": (_Z, [_P, _L]),
    "gguf_find_tensor": (_L, [_P, _S]),
    "gguf_set_kv": (None, [_P, _P]),
    "gguf_set_val_u32": (None, [_P, _S, ctypes.c_uint32]),
    "gguf_set_val_str": (None, [_P, _S, _S]),
    "gguf_remove_key": (_L, [_P, _S]),
    "gguf_add_tensor": (None, [_P, TensorPointer]),
    "gguf_set_tensor_type": (None, [_P, _S, _I]),
    "gguf_get_meta_size": (_Z, [_P]),
    "gguf_get_meta_data": (None, [_P, _P]),
}


@cache
def base_library() -> ctypes.CDLL:
    """libggml-base with the argument types of all functions that are called here.

    Raises `EnvironmentNotReady` if llama-cpp-python is missing or has another layout.
    """
    spec = importlib.util.find_spec("llama_cpp")
    if spec is None or spec.origin is None:
        raise EnvironmentNotReady(
            "llama-cpp-python is not installed.",
            "GGUF files are quantized by the libraries that ship with it.",
            "Run `python3 environments/bootstrap.py main` in the project's folder.",
        )
    suffix = ".dylib" if sys.platform == "darwin" else ".so"
    path = Path(spec.origin).parent / "lib" / f"libggml-base{suffix}"
    try:
        library = ctypes.CDLL(str(path))
        for name, (result, arguments) in _SIGNATURES.items():
            function = getattr(library, name)
            function.restype, function.argtypes = result, arguments
    except (OSError, AttributeError) as error:
        raise EnvironmentNotReady(
            f"The library {path} cannot be used.",
            f"The loader reports: {error}.",
            "Rebuild with `python3 environments/bootstrap.py main --rebuild`.",
        ) from error
    if library.ggml_tensor_overhead() != _OBJECT_BYTES + ctypes.sizeof(Tensor):
        raise EnvironmentNotReady(
            f"The library {path} has another layout of `struct ggml_tensor`.",
            "Its version of ggml is not the pinned one.",
            "Install the pinned llama-cpp-python with `python3 environments/bootstrap.py main`.",
        )
    return library


def type_name(ggml_type: int) -> str:
    """The usual name of an `enum ggml_type` value, such as `Q4_K`."""
    name: bytes = base_library().ggml_type_name(ggml_type)
    return name.decode().upper()


@cache
def type_of_name(name: str) -> int:
    """The `enum ggml_type` value of a name, in the spelling of `type_name` or ggml."""
    for ggml_type in range(64):
        if base_library().ggml_type_name(ggml_type) and type_name(ggml_type) == name.upper():
            return ggml_type
    raise ValueError(f"ggml has no type {name!r}")


def row_bytes(ggml_type: int, n_elements: int) -> int:
    """Bytes of one row of `n_elements` numbers."""
    return int(base_library().ggml_row_size(ggml_type, n_elements))


class GgufTensor:
    """One tensor of a GGUF file: ggml's struct, and the offset of its data in the file."""

    def __init__(self, pointer: Any, offset: int) -> None:
        self.pointer = pointer
        self.name: str = pointer.contents.name.decode()
        self.ggml_type: int = pointer.contents.type
        self.shape: tuple[int, ...] = tuple(pointer.contents.ne)
        self.offset = offset

    @property
    def n_bytes(self) -> int:
        """Bytes of the tensor's data."""
        row, *others = self.shape
        n_rows = 1
        for extent in others:
            n_rows *= extent
        return row_bytes(self.ggml_type, row) * n_rows


class GgufMetadata:
    """The key-values and tensor descriptions of a GGUF file, owned by ggml's reader."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._library = base_library()
        self._tensors = ctypes.c_void_p()
        self.context = self._library.gguf_init_from_file(
            str(path).encode(), _InitParams(no_alloc=True, ctx=ctypes.pointer(self._tensors))
        )
        if not self.context:
            raise InputError(
                f"The GGUF file {path} cannot be read.",
                "llama.cpp's reader rejected its header; the file is damaged or truncated.",
                "Download or convert the file again.",
            )

    def close(self) -> None:
        """Free ggml's memory."""
        self._library.gguf_free(self.context)
        self._library.ggml_free(self._tensors)

    def tensors(self) -> list[GgufTensor]:
        """All tensors, in the file's order."""
        library = self._library
        data_offset = library.gguf_get_data_offset(self.context)
        return [
            GgufTensor(
                library.ggml_get_tensor(
                    self._tensors, library.gguf_get_tensor_name(self.context, index)
                ),
                data_offset + library.gguf_get_tensor_offset(self.context, index),
            )
            for index in range(library.gguf_get_n_tensors(self.context))
        ]

    def text(self, key: str) -> str | None:
        """The value of a string key, or None."""
        index = self._library.gguf_find_key(self.context, key.encode())
        if index < 0 or self._library.gguf_get_kv_type(self.context, index) != _KV_STRING:
            return None
        value: bytes = self._library.gguf_get_val_str(self.context, index)
        return value.decode()


def build_header(
    source: GgufMetadata,
    *,
    values: Mapping[str, int | str],
    removed_keys: Sequence[str],
    tensors: Sequence[tuple[GgufTensor, int]],
) -> tuple[bytes, dict[str, int]]:
    """The header of a GGUF file with the key-values of `source`, and `tensors` in their new types.

    `removed_keys` are removed first, then `values` are set in order (numbers as uint32). Returns the
    header's bytes and the absolute offset of every tensor.
    """
    library = base_library()
    context = library.gguf_init_empty()
    try:
        library.gguf_set_kv(context, source.context)
        for key in removed_keys:
            library.gguf_remove_key(context, key.encode())
        for key, value in values.items():
            if isinstance(value, int):
                library.gguf_set_val_u32(context, key.encode(), value)
            else:
                library.gguf_set_val_str(context, key.encode(), value.encode())
        for tensor, new_type in tensors:
            library.gguf_add_tensor(context, tensor.pointer)
            library.gguf_set_tensor_type(context, tensor.name.encode(), new_type)
        header = ctypes.create_string_buffer(library.gguf_get_meta_size(context))
        library.gguf_get_meta_data(context, header)
        offsets = {
            tensor.name: len(header)
            + library.gguf_get_tensor_offset(
                context, library.gguf_find_tensor(context, tensor.name.encode())
            )
            for tensor, _ in tensors
        }
        return header.raw, offsets
    finally:
        library.gguf_free(context)


@contextmanager
def captured_log() -> Iterator[list[str]]:
    """Collect llama.cpp's log inside the block; errors also go to this process's log.

    The list holds fragments in order: a line may consist of several.
    """
    import llama_cpp
    from llama_cpp._logger import llama_log_callback

    fragments: list[str] = []
    level_of_line = 0

    def collect(level: int, text: bytes, _: Any) -> None:
        nonlocal level_of_line
        if level != _LOG_CONTINUE:
            level_of_line = level
        fragments.append(text.decode(errors="replace"))
        if level_of_line == _LOG_ERROR:
            logger.error(fragments[-1].rstrip())

    callback = llama_cpp.llama_log_callback(collect)
    llama_cpp.llama_log_set(callback, ctypes.c_void_p(0))
    try:
        yield fragments
    finally:
        llama_cpp.llama_log_set(llama_log_callback, ctypes.c_void_p(0))


def reported_error(log: Sequence[str]) -> str:
    """The first error in a `captured_log`, as a sentence for an error's reason."""
    lines = [line for line in "".join(log).splitlines() if "error" in line or "fail" in line]
    return f"It reports: {lines[0]}" if lines else "It reports no reason."
