"""The source's weights: rows of every tensor in the type of the lossless intermediate."""

import ctypes
import os
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from quant_assets.errors import InputError
from quant_assets.formats.safetensors_header import tensors_of_folder
from quant_assets.models.integrity import check_gguf
from quant_assets.workers.gguf import ggml
from quant_assets.workers.gguf.ggml import GgufMetadata

Buffer = npt.NDArray[np.uint8]

SAFETENSORS_TYPES = {"F32": ggml.F32, "F16": ggml.F16, "BF16": ggml.BF16}


class Rows(Protocol):
    """The rows of one tensor, in its source type."""

    def read(self, first_row: int, out: Buffer) -> None:
        """Fill `out`, which holds whole rows, with the rows from `first_row` on."""


class Source(Protocol):
    """A model whose tensors can be read row by row."""

    metadata: GgufMetadata
    intermediate: str

    def open_tensor(self, name: str) -> Rows:
        """The rows of a tensor; memory that this call takes is freed with its result."""

    def prefetch(self, name: str) -> None:
        """Tell the system that the tensor will be read soon."""

    def memory_bytes(self, name: str) -> int:
        """Memory that `open_tensor` takes, in bytes; 0 if the rows stay in their file."""


class FileRows:
    """Rows stored contiguously in a file."""

    def __init__(self, descriptor: int, offset: int, row_bytes: int, path: Path) -> None:
        self._descriptor = descriptor
        self._offset = offset
        self._row_bytes = row_bytes
        self._path = path

    def read(self, first_row: int, out: Buffer) -> None:
        """Read from the file; raises `InputError` if it ends too early."""
        view = out.data
        position = self._offset + first_row * self._row_bytes
        while view:
            count = os.preadv(self._descriptor, [view], position)
            if count == 0:
                raise InputError(
                    f"The file {self._path} ends in the middle of a tensor.",
                    "It was truncated while it was read.",
                    "Restore the file, then run the same command again.",
                )
            view = view[count:]
            position += count


class MemoryRows:
    """Rows of a tensor that the converter computed, rounded to `ggml_type` as it does."""

    def __init__(self, values: npt.NDArray[Any], ggml_type: int) -> None:
        self._rows = values.reshape(-1, values.shape[-1])
        self._type = ggml_type

    def read(self, first_row: int, out: Buffer) -> None:
        """Round the rows into `out`."""
        n_rows = out.nbytes // ggml.row_bytes(self._type, self._rows.shape[-1])
        rows = self._rows[first_row : first_row + n_rows]
        if self._type == ggml.BF16:
            rows = np.ascontiguousarray(rows, dtype=np.float32)
            ggml.base_library().ggml_fp32_to_bf16_row_ref(
                rows.ctypes.data_as(ctypes.c_void_p),
                out.ctypes.data_as(ctypes.c_void_p),
                rows.size,
            )
        elif self._type in (ggml.F32, ggml.F16):
            dtype = np.float32 if self._type == ggml.F32 else np.float16
            out.view(dtype)[:] = rows.astype(dtype, copy=False).ravel()
        else:
            out[:] = np.ascontiguousarray(rows).view(np.uint8).ravel()


class GgufSource:
    """An F16, BF16 or F32 GGUF file."""

    def __init__(self, path: Path) -> None:
        check_gguf(path)
        self.metadata = GgufMetadata(path)
        self._path = path
        self._tensors = {tensor.name: tensor for tensor in self.metadata.tensors()}
        matrices = [tensor for tensor in self._tensors.values() if tensor.shape[1] > 1]
        self.intermediate = ggml.type_name(matrices[0].ggml_type) if matrices else "F32"
        self._descriptor = os.open(path, os.O_RDONLY)

    def open_tensor(self, name: str) -> FileRows:
        """The rows in the file."""
        tensor = self._tensors[name]
        row_bytes = ggml.row_bytes(tensor.ggml_type, tensor.shape[0])
        return FileRows(self._descriptor, tensor.offset, row_bytes, self._path)

    def prefetch(self, name: str) -> None:
        """Start reading the tensor."""
        tensor = self._tensors[name]
        read_ahead(self._descriptor, tensor.offset, tensor.n_bytes)

    def memory_bytes(self, name: str) -> int:  # noqa: ARG002 the protocol's signature
        """Zero: rows stay in the file."""
        return 0


def read_ahead(descriptor: int, offset: int, n_bytes: int) -> None:
    """Start reading a range of a file into the page cache."""
    if hasattr(os, "posix_fadvise"):  # missing on macOS, which reads on demand
        os.posix_fadvise(descriptor, offset, n_bytes, os.POSIX_FADV_WILLNEED)


def float_type_of(folder: Path) -> str:
    """The float type of the first matrix in a Hugging Face folder's shards; F16 for other types."""
    for _, tensor in tensors_of_folder(folder).values():
        if len(tensor.shape) > 1:
            return tensor.dtype if tensor.dtype in SAFETENSORS_TYPES else "F16"
    return "F16"
