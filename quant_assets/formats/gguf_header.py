"""The header of a GGUF file: its key-values and tensor descriptions, without the tensors' data.

The layout is that of the GGUF specification (ggml/docs/gguf.md), versions 2 and 3, little-endian.
Long arrays (vocabularies) are skipped, so that a header with 128,000 tokens is read in well under a
second. Everything that ggml's own reader refuses or aborts on is refused here first.
"""

import mmap
import os
import struct
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Final

from quant_assets.errors import InputError
from quant_assets.formats.ggml_types import ggml_type_of_number

Scalar = str | int | float | bool
Value = Scalar | tuple[Scalar, ...]

MAGIC: Final = b"GGUF"
MAX_ARRAY_KEPT: Final = 4096
"""Longer arrays are skipped: they are vocabularies, whose length alone matters."""
MAX_KEYS: Final = 10_000
"""Published files have fewer than 200 keys."""
MAX_TENSORS: Final = 200_000
"""The largest models have 70,000 matrices, with every expert stored separately."""
MAX_STRINGS: Final = 4_000_000
"""Strings in all arrays; the largest vocabularies have 262,144 tokens and 600,000 merges."""
MAX_TEXT_BYTES: Final = 4_000_000
"""One string that is kept; the longest in published files are chat templates of 30 KB."""
MAX_TEXTS_BYTES: Final = 64_000_000
"""All strings that are kept."""

_READ_VERSIONS: Final = (2, 3)
_SCALARS: Final = {
    0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q",
    12: "<d",
}  # fmt: skip
_UINT32: Final = 4
_STRING: Final = 8
_ARRAY: Final = 9
_MAX_DIMS: Final = 4
_MAX_NAME_BYTES: Final = 63  # GGML_MAX_NAME, with the zero at its end
_MAX_EXTENT: Final = 2**63 - 1  # ggml counts in int64
_ALIGNMENT_KEY: Final = "general.alignment"
_DEFAULT_ALIGNMENT: Final = 32
_MAX_ALIGNMENT: Final = 2**20


@dataclass(frozen=True)
class HeaderTensor:
    """One tensor: `shape` is ggml's, row length first; `n_bytes` is without padding.

    `offset` counts from the start of the file's data.
    """

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
    """Key-values, the lengths of all arrays, and the tensors in the file's order.

    The tensors' data begin at `data_start`.
    """

    values: dict[str, Value]
    array_lengths: dict[str, int]
    tensors: tuple[HeaderTensor, ...]
    data_start: int

    @property
    def file_bytes(self) -> int:
        """Size of a file with this header and all data of its tensors."""
        last = self.tensors[-1] if self.tensors else None
        return self.data_start + last.offset + last.n_bytes if last else 0

    @property
    def n_parts(self) -> int:
        """Number of files that the model is split into."""
        parts = self.values.get("split.count", 1)
        return parts if isinstance(parts, int) else 1


class _Cursor:
    """Reads little-endian values from a buffer; raises `struct.error` past its end."""

    def __init__(self, data: mmap.mmap) -> None:
        self._data = data
        self._texts_bytes = 0
        self._strings = 0
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

    def raw_text(self) -> bytes:
        length = self.integer("<Q")
        start = self.position
        self.skip(length)
        self._texts_bytes += length
        if length > MAX_TEXT_BYTES or self._texts_bytes > MAX_TEXTS_BYTES:
            raise ValueError(f"a string of {length} bytes is longer than any model needs")
        return self._data[start : self.position]

    def text(self) -> str:
        return self.raw_text().decode("utf-8", errors="replace")

    def name(self) -> str:
        return self.raw_text().decode("utf-8")

    def skip_strings(self, count: int) -> None:
        self._strings += count
        if self._strings > MAX_STRINGS:
            raise ValueError(f"its arrays claim more than {MAX_STRINGS:,} strings")
        data, position = self._data, self.position
        unpack = struct.Struct("<Q").unpack_from
        for _ in range(count):
            position += 8 + unpack(data, position)[0]
        self.position = position
        self.skip(0)


def require_gguf(path: Path) -> None:
    """Raise `InputError` unless `path` starts like a GGUF file of a supported version."""
    if not path.is_file():
        raise InputError(
            f"The file {path} cannot be read.",
            "It is missing or is not a regular file.",
            "Check its path and rights.",
        )
    with path.open("rb") as stream:
        head = stream.read(8)
    if len(head) < 8 or head[:4] != MAGIC:
        raise InputError(
            f"The file {path} is not a GGUF file.",
            f"It begins with {head[:4]!r} where a GGUF file begins with {MAGIC!r}.",
            "Give a GGUF file or a Hugging Face folder.",
        )
    (version,) = struct.unpack("<I", head[4:])
    (swapped,) = struct.unpack(">I", head[4:])
    if version not in _READ_VERSIONS:
        big_endian = swapped in (1, *_READ_VERSIONS)
        raise InputError(
            f"The file {path} is GGUF version {swapped if big_endian else version}"
            f"{', big-endian' if big_endian else ''}.",
            "Versions 2 and 3, little-endian, are supported.",
            "Convert the file with a current llama.cpp first.",
        )


def read_gguf_header(path: Path, *, require_data: bool = True) -> GgufHeader:
    """The header of `path`, checked against itself and, with `require_data`, the file's size.

    Raises `InputError` when it is not a GGUF file, is damaged or cut off.
    """
    try:
        require_gguf(path)
        with (
            path.open("rb") as stream,
            mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data,
        ):
            header = _read(_Cursor(data))
            size = len(data)
    except OSError as error:
        raise InputError(
            f"The file {path} cannot be read.", f"{error.strerror}.", "Check its path and rights."
        ) from error
    except (struct.error, ValueError, OverflowError) as error:
        raise InputError(
            f"The GGUF file {path} cannot be read: its header is damaged.",
            f"It is cut off or overwritten ({error}).",
            "Fetch or convert the file again.",
        ) from error
    if require_data and size < header.file_bytes:
        raise InputError(
            f"The file {path} is cut off.",
            f"Its header describes {header.file_bytes} bytes, it has {size}.",
            "Fetch or convert the file again.",
        )
    return header


def with_room_for_data(path: Path, folder: Path) -> Path:
    """`path`; for a file that ends before its tensors' data, a sparse copy of its header in `folder`.

    Readers that check a file's size and never read its data accept the copy. Raises `InputError` for
    an invalid header.
    """
    header = read_gguf_header(path, require_data=False)
    if path.stat().st_size >= header.file_bytes:
        return path
    copy = folder / f"header of {path.name}"
    with path.open("rb") as stream:
        copy.write_bytes(stream.read(header.data_start))
    os.truncate(copy, header.file_bytes)
    return copy


def require_single_file(header: GgufHeader, path: Path) -> None:
    """Raise `InputError` where the file is one part of a split model."""
    if header.n_parts > 1:
        raise InputError(
            f"The file {path} is one of {header.n_parts} parts of a model.",
            "Its header lists only its own tensors.",
            "Merge the parts with llama.cpp's `llama-gguf-split --merge` first.",
        )


def require_tensors(header: GgufHeader, path: Path) -> None:
    """Raise `InputError` where the file holds only a vocabulary."""
    if not header.tensors:
        raise InputError(
            f"{path} holds no tensors.",
            "It holds only a vocabulary.",
            "Give the file of a whole model.",
        )


def _read(cursor: _Cursor) -> GgufHeader:
    cursor.skip(8)  # magic and version, which `require_gguf` has read
    n_tensors = cursor.integer("<Q")
    n_values = cursor.integer("<Q")
    if n_tensors > MAX_TENSORS or n_values > MAX_KEYS:
        raise ValueError(f"it claims {n_tensors} tensors and {n_values} keys")
    values: dict[str, Value] = {}
    lengths: dict[str, int] = {}
    alignment = _DEFAULT_ALIGNMENT
    for _ in range(n_values):
        key = cursor.name()
        # ggml aborts on a key that is empty up to its first zero byte.
        if not key or not key.isprintable() or key in values or key in lengths:
            raise ValueError(f"the key {key[:100]!r} is not a name or occurs twice")
        kind = cursor.integer("<I")
        if kind != _ARRAY:
            values[key] = _scalar(cursor, kind)
            if key == _ALIGNMENT_KEY:
                alignment = _alignment(values[key], kind)
            continue
        kind = cursor.integer("<I")
        lengths[key] = length = cursor.integer("<Q")
        if length <= MAX_ARRAY_KEPT:
            values[key] = tuple(_scalar(cursor, kind) for _ in range(length))
        else:
            _skip_array(cursor, kind, length)
    tensors: dict[str, HeaderTensor] = {}
    expected = 0
    for _ in range(n_tensors):
        tensor = _tensor(cursor)
        if tensor.name in tensors:
            raise ValueError(f"the tensor {tensor.name!r} occurs twice")
        if tensor.offset != expected:
            raise ValueError(
                f"the tensor {tensor.name!r} lies at {tensor.offset} instead of {expected}"
            )
        expected += -(-tensor.n_bytes // alignment) * alignment
        tensors[tensor.name] = tensor
    data_start = -(-cursor.position // alignment) * alignment
    if data_start + expected > _MAX_EXTENT:
        raise ValueError("its tensors exceed the largest possible file")
    return GgufHeader(values, lengths, tuple(tensors.values()), data_start)


def _alignment(value: Value, kind: int) -> int:
    if kind != _UINT32 or not isinstance(value, int) or value.bit_count() != 1:
        raise ValueError(f"its alignment is {value!r}, which is not a power of two")
    if value > _MAX_ALIGNMENT:
        raise ValueError(f"its alignment is {value} bytes")
    return value


def _scalar(cursor: _Cursor, kind: int) -> Scalar:
    if kind == _STRING:
        return cursor.text()
    if kind not in _SCALARS:
        raise ValueError(f"a value has the unknown type {kind}")
    return cursor.unpack(_SCALARS[kind])


def _skip_array(cursor: _Cursor, kind: int, length: int) -> None:
    if kind == _STRING:
        cursor.skip_strings(length)
    elif kind in _SCALARS:
        cursor.skip(length * struct.calcsize(_SCALARS[kind]))
    else:
        raise ValueError(f"an array has the unknown type {kind}")


def _tensor(cursor: _Cursor) -> HeaderTensor:
    name = cursor.name()
    if not 1 <= len(name.encode()) <= _MAX_NAME_BYTES or not name.isprintable():
        raise ValueError(f"a tensor has the name {name[:100]!r}")
    n_dims = cursor.integer("<I")
    if not 1 <= n_dims <= _MAX_DIMS:
        raise ValueError(f"the tensor {name!r} has {n_dims} dimensions")
    shape = tuple(cursor.integer("<Q") for _ in range(n_dims))
    number = cursor.integer("<I")
    offset = cursor.integer("<Q")
    tensor_type = ggml_type_of_number(number)
    if tensor_type is None:
        raise ValueError(f"the tensor {name!r} has the unknown type {number}")
    if not 1 <= prod(shape) <= _MAX_EXTENT:
        raise ValueError(f"the tensor {name!r} has the shape {list(shape)}")
    if shape[0] % tensor_type.block_size:
        raise ValueError(
            f"the tensor {name!r} has rows of {shape[0]} numbers, not a multiple of the "
            f"{tensor_type.block_size} in a block of {tensor_type.name}"
        )
    n_bytes = tensor_type.row_bytes(shape[0]) * prod(shape[1:])
    return HeaderTensor(name, shape, tensor_type.name, offset, n_bytes)
