"""The header of a GGUF file: its key-values and tensor descriptions, without the tensors' data.

The layout is that of the GGUF specification (ggml/docs/gguf.md), versions 2 and 3, little-endian.
Long arrays (vocabularies) are skipped, so that a header of 128,000 tokens is read in well under a
second.
"""

import mmap
import struct
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Final

from quant_assets.errors import InputError
from quant_assets.formats.ggml_types import ggml_type_of_number
from quant_assets.models.source import require_gguf

Scalar = str | int | float | bool
Value = Scalar | tuple[Scalar, ...]

MAX_ARRAY_KEPT: Final = 4096
"""Longer arrays are skipped: they are vocabularies, of which only the length is of interest."""

_SCALARS: Final = {
    0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q",
    12: "<d",
}  # fmt: skip
_STRING: Final = 8
_ARRAY: Final = 9
_MAX_DIMS: Final = 4


@dataclass(frozen=True)
class HeaderTensor:
    """One tensor: `shape` is ggml's, row length first; `n_bytes` is without padding."""

    name: str
    shape: tuple[int, ...]
    type_name: str
    offset: int
    n_bytes: int

    @property
    def n_elements(self) -> int:
        """Numbers in the tensor."""
        return prod(self.shape)


@dataclass(frozen=True)
class GgufHeader:
    """Key-values, the lengths of all arrays, and the tensors in the file's order."""

    values: dict[str, Value]
    array_lengths: dict[str, int]
    tensors: tuple[HeaderTensor, ...]


class _Cursor:
    """Reads little-endian values out of a buffer; `struct.error` past its end."""

    def __init__(self, data: mmap.mmap) -> None:
        self._data = data
        self.position = 0

    def unpack(self, layout: str) -> Scalar:
        value: Scalar = struct.unpack_from(layout, self._data, self.position)[0]
        self.position += struct.calcsize(layout)
        return value

    def integer(self, layout: str) -> int:
        return int(self.unpack(layout))

    def skip(self, size: int) -> None:
        self.position += size
        if self.position > len(self._data):
            raise struct.error("past the end")

    def text(self) -> str:
        length = self.integer("<Q")
        start = self.position
        self.skip(length)
        return self._data[start : self.position].decode("utf-8", errors="replace")


def read_gguf_header(path: Path) -> GgufHeader:
    """Read the header of `path`; raises `InputError` when it is no GGUF, damaged or cut off."""
    try:
        require_gguf(path)
        with (
            path.open("rb") as stream,
            mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data,
        ):
            return _read(_Cursor(data))
    except OSError as error:
        raise InputError(
            f"The file {path} cannot be read.", f"{error.strerror}.", "Check its path and rights."
        ) from error
    except (struct.error, ValueError, OverflowError) as error:
        raise InputError(
            f"The GGUF file {path} has a damaged header.",
            f"It is cut off or overwritten ({error}).",
            "Fetch or convert the file again.",
        ) from error


def _read(cursor: _Cursor) -> GgufHeader:
    cursor.skip(8)  # magic and version, which `require_gguf` has read
    n_tensors = cursor.integer("<Q")
    n_values = cursor.integer("<Q")
    values: dict[str, Value] = {}
    lengths: dict[str, int] = {}
    for _ in range(n_values):
        key = cursor.text()
        kind = cursor.integer("<I")
        if kind != _ARRAY:
            values[key] = _scalar(cursor, kind)
            continue
        kind = cursor.integer("<I")
        lengths[key] = length = cursor.integer("<Q")
        if length <= MAX_ARRAY_KEPT:
            values[key] = tuple(_scalar(cursor, kind) for _ in range(length))
        else:
            _skip_array(cursor, kind, length)
    return GgufHeader(values, lengths, tuple(_tensor(cursor) for _ in range(n_tensors)))


def _scalar(cursor: _Cursor, kind: int) -> Scalar:
    if kind == _STRING:
        return cursor.text()
    if kind not in _SCALARS:
        raise ValueError(f"a value has the unknown type {kind}")
    return cursor.unpack(_SCALARS[kind])


def _skip_array(cursor: _Cursor, kind: int, length: int) -> None:
    if kind == _STRING:
        for _ in range(length):
            cursor.skip(cursor.integer("<Q"))
    elif kind in _SCALARS:
        cursor.skip(length * struct.calcsize(_SCALARS[kind]))
    else:
        raise ValueError(f"an array has the unknown type {kind}")


def _tensor(cursor: _Cursor) -> HeaderTensor:
    name = cursor.text()
    n_dims = cursor.integer("<I")
    if not 1 <= n_dims <= _MAX_DIMS:
        raise ValueError(f"the tensor {name!r} has {n_dims} dimensions")
    shape = tuple(cursor.integer("<Q") for _ in range(n_dims))
    number = cursor.integer("<I")
    offset = cursor.integer("<Q")
    tensor_type = ggml_type_of_number(number)
    if tensor_type is None:
        raise ValueError(f"the tensor {name!r} has the unknown type {number}")
    n_bytes = tensor_type.row_bytes(shape[0]) * prod(shape[1:])
    return HeaderTensor(name, shape, tensor_type.name, offset, n_bytes)
