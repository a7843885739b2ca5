"""Chunks of rows, from source to final place: read, widen, quantize, check, write."""

import ctypes
import hashlib
import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from quant_assets.errors import InputError
from quant_assets.workers.gguf import ggml
from quant_assets.workers.gguf.kernels.quantizer import Quantizer
from quant_assets.workers.gguf.plan import PlannedTensor
from quant_assets.workers.gguf.source import Buffer, Rows

# 2 MB of float32: large enough to amortize a call, small enough for a core's cache.
CHUNK_ELEMENTS = 1 << 19


@dataclass(frozen=True)
class Chunk:
    """Rows `first_row` to `first_row + n_rows` of a tensor; they belong to one matrix."""

    tensor: PlannedTensor
    first_row: int
    n_rows: int

    @property
    def offset(self) -> int:
        """Absolute offset of the chunk in the output."""
        return self.tensor.offset + self.first_row * self.tensor.target_row_bytes

    @property
    def n_bytes(self) -> int:
        """Bytes of the chunk in the output."""
        return self.n_rows * self.tensor.target_row_bytes


def chunks_of(tensor: PlannedTensor) -> Iterator[Chunk]:
    """Split a tensor into chunks of whole rows that do not cross expert boundaries."""
    step = max(1, CHUNK_ELEMENTS // tensor.row_elements)
    for matrix in range(0, tensor.n_rows, tensor.rows_per_matrix):
        for row in range(matrix, matrix + tensor.rows_per_matrix, step):
            yield Chunk(tensor, row, min(step, matrix + tensor.rows_per_matrix - row))


class ChunkWriter:
    """Quantizes chunks and writes them to `descriptor`; thread-safe.

    The C functions and the system calls release the GIL, so threads use all cores, and reading,
    quantizing and writing of different chunks overlap.
    """

    def __init__(self, descriptor: int, quantizer: Quantizer) -> None:
        self._descriptor = descriptor
        self._quantizer = quantizer
        self._buffers = threading.local()
        self._library = ggml.base_library()

    def write(self, chunk: Chunk, rows: Rows, importances: npt.NDArray[np.float32] | None) -> bytes:
        """Quantize and write one chunk; returns the SHA-256 of the bytes written.

        Raises `InputError` if source or result holds invalid values.
        """
        tensor = chunk.tensor
        source = self._buffer("source", chunk.n_rows * tensor.source_row_bytes)
        rows.read(chunk.first_row, source)
        self._check(tensor, tensor.source_type, source)
        data = source
        if tensor.target_type != tensor.source_type:
            data = self._buffer("target", chunk.n_bytes)
            self._quantize(chunk, source, data, importances)
            self._check(tensor, tensor.target_type, data)
        write_at(self._descriptor, data.data, chunk.offset)
        return hashlib.sha256(data.data).digest()

    def _check(self, tensor: PlannedTensor, ggml_type: int, data: Buffer) -> None:
        """llama.cpp's own validation of data that it reads and of data that it quantized."""
        if not self._library.ggml_validate_row_data(ggml_type, _pointer(data), data.nbytes):
            raise InputError(
                f"The tensor {tensor.name} has invalid values as {ggml.type_name(ggml_type)}.",
                "Some are infinite, NaN, or too large for the type.",
                "Download the source model again; if it is intact, choose a type of wider range.",
            )

    def _quantize(
        self,
        chunk: Chunk,
        source: Buffer,
        target: Buffer,
        importances: npt.NDArray[np.float32] | None,
    ) -> None:
        tensor = chunk.tensor
        n_elements = chunk.n_rows * tensor.row_elements
        if tensor.source_type == ggml.F32:
            wide = source
        else:
            wide = self._buffer("wide", n_elements * np.dtype(np.float32).itemsize)
            widen = (
                self._library.ggml_bf16_to_fp32_row
                if tensor.source_type == ggml.BF16
                else self._library.ggml_fp16_to_fp32_row
            )
            widen(_pointer(source), _pointer(wide), n_elements)
        weights = None
        if importances is not None:
            first = chunk.first_row // tensor.rows_per_matrix * tensor.row_elements
            weights = _pointer(importances[first : first + tensor.row_elements])
        self._quantizer.quantize(
            tensor.target_type,
            _pointer(wide),
            _pointer(target),
            chunk.n_rows,
            tensor.row_elements,
            weights,
        )

    def _buffer(self, name: str, n_bytes: int) -> Buffer:
        """A buffer of this thread, reused from chunk to chunk."""
        buffer: Buffer | None = getattr(self._buffers, name, None)
        if buffer is None or buffer.nbytes < n_bytes:
            buffer = np.empty(n_bytes, dtype=np.uint8)
            setattr(self._buffers, name, buffer)
        return buffer[:n_bytes]


def _pointer(array: npt.NDArray[np.uint8] | npt.NDArray[np.float32]) -> ctypes.c_void_p:
    return array.ctypes.data_as(ctypes.c_void_p)


def write_at(descriptor: int, data: memoryview | bytes, offset: int) -> None:
    """Write all of `data` at `offset`."""
    view = memoryview(data)
    while view:
        count = os.pwrite(descriptor, view, offset)
        view = view[count:]
        offset += count


def digest_at(descriptor: int, chunk: Chunk) -> bytes:
    """The SHA-256 of the file's current bytes at the chunk's place."""
    return hashlib.sha256(os.pread(descriptor, chunk.n_bytes, chunk.offset)).digest()
