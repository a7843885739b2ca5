"""Safetensors: the header of a file, the index over several, and the weight files of a folder.

The only place that decides which files hold a model's weights and where each tensor lies, for this
process and for the workers. A file is refused unless its tensors fill its data exactly, without
gaps or overlaps, as the format's own library requires.
"""

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, Final, TypeGuard

from quant_assets.errors import InputError
from quant_assets.formats.json_files import MAX_BYTES, parse_json_object, read_json_object
from quant_assets.settings import get_settings

INDEX_NAME: Final = "model.safetensors.index.json"
SUFFIX: Final = ".safetensors"
BITS_OF_DTYPE: Final = {
    "F64": 64, "I64": 64, "U64": 64, "C64": 64, "F32": 32, "I32": 32, "U32": 32, "F16": 16,
    "BF16": 16, "I16": 16, "U16": 16, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8,
    "F8_E5M2FNUZ": 8, "I8": 8, "U8": 8, "BOOL": 8, "F6_E2M3": 6, "F6_E3M2": 6, "F4": 4,
}  # fmt: skip
"""Bits per number of every type in safetensors files."""

_MAX_EXTENT: Final = 2**63 - 1  # readers count numbers and bytes in 64 bits
_LENGTH_BYTES: Final = 8
_HEADER_MULTIPLE: Final = 8  # the format's own library aligns the data to it
_MAX_DIMS: Final = 64  # the limit of torch
_MAX_NAME_BYTES: Final = 255  # the limit of all common file systems
_NUMBERED_SHARD: Final = re.compile(
    r"^(?P<stem>.+)-(?P<number>\d{5})-of-(?P<total>\d{5})\.safetensors$"
)
_FETCH_AGAIN: Final = "Fetch the file again and compare its checksum with the publisher's."


@dataclass(frozen=True)
class StoredTensor:
    """One tensor: `begin` and `end` are offsets in bytes from the start of the file's data."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int

    @property
    def n_elements(self) -> int:
        """Numbers in the tensor."""
        return prod(self.shape)

    @property
    def n_bytes(self) -> int:
        """Bytes of the tensor's data."""
        return self.end - self.begin


@dataclass(frozen=True)
class SafetensorsHeader:
    """The tensors of one file by name, in the header's order; their data begins at `data_start`."""

    tensors: dict[str, StoredTensor]
    data_start: int

    @property
    def data_bytes(self) -> int:
        """Bytes of all tensors."""
        return max((tensor.end for tensor in self.tensors.values()), default=0)


def read_safetensors_header(path: Path) -> SafetensorsHeader:
    """The header of a safetensors file, checked against itself and the file's size.

    Raises `InputError` for a file that is missing, cut off or damaged.
    """
    try:
        if not path.is_file():
            raise _damaged(path, "It is missing or is not a regular file.")
        size = path.stat().st_size
        with path.open("rb") as stream:
            prefix = stream.read(_LENGTH_BYTES)
            n_header = int.from_bytes(prefix, "little")
            if len(prefix) == _LENGTH_BYTES and n_header > MAX_BYTES:
                raise _damaged(path, f"It claims a header of {n_header} bytes.")
            if len(prefix) < _LENGTH_BYTES or _LENGTH_BYTES + n_header > size:
                raise _cut_off(path, _LENGTH_BYTES + n_header, size)
            text = stream.read(n_header)
        if not text.startswith(b"{"):
            raise _damaged(path, "It does not begin with an object.")
        content = parse_json_object(text, allow_constants=False)
    except ValueError as error:
        raise _damaged(path, f"As JSON, {error}.") from error
    except OSError as error:
        raise InputError(
            f"The file {path} cannot be read.", f"{error.strerror}.", "Check its path and rights."
        ) from error
    metadata = content.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(x, str) for x in metadata.values()):
        raise _damaged(path, "Its metadata values are not strings.")
    header = SafetensorsHeader(
        {name: _tensor(path, name, entry) for name, entry in content.items()},
        _LENGTH_BYTES + n_header,
    )
    _check_extents(path, header, size)
    return header


def _tensor(path: Path, name: str, entry: Any) -> StoredTensor:
    fields: dict[str, Any] = entry if isinstance(entry, dict) else {}
    dtype, shape, offsets = (fields.get(key) for key in ("dtype", "shape", "data_offsets"))
    if (
        not isinstance(dtype, str)
        or dtype not in BITS_OF_DTYPE
        or not _are_extents(shape)
        or len(shape) > _MAX_DIMS
        or not _are_extents(offsets)
        or len(offsets) != 2
    ):
        raise _damaged(path, f"Its entry for the tensor {name[:200]!r} is invalid.")
    begin, end = offsets
    n_elements = prod(shape)
    expected, odd_bits = divmod(n_elements * BITS_OF_DTYPE[dtype], 8)
    if n_elements > _MAX_EXTENT or odd_bits or end - begin != expected:
        raise _damaged(
            path, f"The tensor {name[:200]!r} needs {expected} bytes and has {end - begin}."
        )
    return StoredTensor(name, dtype, tuple(shape), begin, end)


def _are_extents(values: Any) -> TypeGuard[list[int]]:
    return isinstance(values, list) and all(
        type(value) is int and 0 <= value <= _MAX_EXTENT for value in values
    )


def _check_extents(path: Path, header: SafetensorsHeader, size: int) -> None:
    position = 0
    for tensor in sorted(header.tensors.values(), key=lambda tensor: (tensor.begin, tensor.end)):
        if tensor.begin != position:
            what = "overlaps the tensor before it" if tensor.begin < position else "follows a gap"
            raise _damaged(path, f"The tensor {tensor.name[:200]!r} {what}.")
        position = tensor.end
    expected = header.data_start + position
    if size < expected:
        raise _cut_off(path, expected, size)
    if size > expected:
        raise _damaged(path, f"The file is {size} bytes, the header describes {expected}.")


def _cut_off(path: Path, expected: int, size: int) -> InputError:
    return InputError(
        f"The shard {path} is cut off.",
        f"Its header describes {expected} bytes, it has {size}.",
        _FETCH_AGAIN,
    )


def _damaged(path: Path, why: str) -> InputError:
    return InputError(f"The shard {path} has a damaged header.", why, _FETCH_AGAIN)


def shard_index(folder: Path) -> dict[str, str] | None:
    """The file that holds each tensor, from the index of `folder`; None without an index.

    Raises `InputError` for a damaged index and for one that names anything but plain file names:
    a path could lead out of the folder, and another suffix to a file that is not safetensors.
    """
    path = folder / INDEX_NAME
    if not path.exists():
        return None
    weight_map = read_json_object(path).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise InputError(
            f"The index {path} has no weight_map.",
            "It maps each tensor to the shard that holds it.",
            "Fetch the file again.",
        )
    for tensor, name in weight_map.items():
        if not isinstance(name, str) or not is_plain_name(name) or not name.endswith(SUFFIX):
            raise InputError(
                f"The index {path} does not name a safetensors file in its folder.",
                f"For the tensor {tensor[:200]!r} it names {str(name)[:200]!r}.",
                "Do not use this model, or fetch it again from its publisher.",
            )
    return weight_map


def shard_names(total: int) -> list[str]:
    """The file names of a model's weights in `total` shards."""
    if total == 1:
        return [f"model{SUFFIX}"]
    return [f"model-{number:05d}-of-{total:05d}{SUFFIX}" for number in range(1, total + 1)]


def encode_header(tensors: Iterable[StoredTensor]) -> bytes:
    """The bytes in front of a file's data that describe `tensors`, in their order.

    The metadata name the format `pt`, which transformers requires of every file it loads.
    """
    entries = {
        tensor.name: {
            "dtype": tensor.dtype,
            "shape": list(tensor.shape),
            "data_offsets": [tensor.begin, tensor.end],
        }
        for tensor in tensors
    }
    text = json.dumps({"__metadata__": {"format": "pt"}, **entries}).encode()
    text += b" " * (-len(text) % _HEADER_MULTIPLE)
    return len(text).to_bytes(_LENGTH_BYTES, "little") + text


def is_plain_name(name: str) -> bool:
    """Whether `name` can be that of a file in its folder: no separator, parent step or control character."""
    return (
        name not in ("", ".", "..")
        and name.isprintable()
        and not set(name) & set("/\\:")
        and len(name.encode()) <= _MAX_NAME_BYTES
    )


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files that hold the model's weights, sorted by name.

    An index names them; without one it is `model.safetensors`, else the numbered series, else every
    file: a repository may carry a second copy in another layout. Raises `InputError` when
    files are missing or lead out of the folder.
    """
    index = shard_index(folder)
    if index is not None:
        names = sorted(set(index.values()))
    else:
        names = _unindexed(sorted(path.name for path in folder.glob(f"*{SUFFIX}")))
    if not names:
        raise InputError(
            f"The folder {folder} has no safetensors files.",
            "Weights in other formats (pickle files among them) are not read.",
            "Save the model with `save_pretrained(..., safe_serialization=True)` first.",
        )
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise InputError(
            f"{len(missing)} of {len(names)} shards of the model in {folder} are missing.",
            f"Missing: {', '.join(missing[:20])}.",
            "Fetch the missing files into the folder.",
        )
    return [require_own_file(folder / name, folder) for name in names]


def _unindexed(found: list[str]) -> list[str]:
    if (single := f"model{SUFFIX}") in found:
        return [single]
    named = [name for name in found if name.startswith("model")] or found
    numbered = _NUMBERED_SHARD.match(named[0]) if named else None
    if numbered is None:
        return named
    total = int(numbered["total"])
    return [
        f"{numbered['stem']}-{number:05d}-of-{total:05d}{SUFFIX}" for number in range(1, total + 1)
    ]


def require_own_file(path: Path, folder: Path) -> Path:
    """Return `path` if it is a file that belongs to the model in `folder`.

    A link may lead to another file of the folder, to the blobs of the hub's cache that the folder
    is part of, or into a folder of `QUANT_ASSETS_MODEL_ROOTS`. Raises `InputError` otherwise: a
    downloaded model must not make a file of this machine part of an artifact.
    """
    try:
        target, root = path.resolve(strict=True), folder.resolve(strict=True)
    except (OSError, RuntimeError) as error:
        raise InputError(
            f"The file {path} cannot be read.", f"{error}.", "Fetch the file again."
        ) from error
    if target.is_relative_to(root) or (
        # <cache>/models--owner--name/snapshots/<revision>/<file> links to ../../blobs/<hash>
        root.parent.name == "snapshots" and target.is_relative_to(root.parent.parent / "blobs")
    ):
        return path
    if any(target.is_relative_to(allowed.resolve()) for allowed in get_settings().model_roots):
        return path
    raise InputError(
        f"The file {path} is a link that leads out of the model's folder.",
        f"It leads to {target}.",
        "Replace it with the file itself, or name the target's folder in QUANT_ASSETS_MODEL_ROOTS "
        '(a JSON list, such as ["/models"]).',
    )


def tensors_of_folder(folder: Path) -> Mapping[str, tuple[Path, StoredTensor]]:
    """Every tensor of the model with the file that holds it, in the order of files and headers.

    Raises `InputError` for files that are missing or damaged, that lack a tensor which the index
    assigns to them, or that hold a tensor of the same name.
    """
    expected: dict[str, set[str]] = {}
    for name, file in (shard_index(folder) or {}).items():
        expected.setdefault(file, set()).add(name)
    found: dict[str, tuple[Path, StoredTensor]] = {}
    for path in weight_files(folder):
        tensors = read_safetensors_header(path).tensors
        absent = sorted(expected.get(path.name, set()) - tensors.keys())
        if absent:
            raise InputError(
                f"The shard {path.name} lacks {len(absent)} tensors that the index assigns to it.",
                f"The first is {absent[0][:200]!r}.",
                _FETCH_AGAIN,
            )
        for name, tensor in tensors.items():
            if name in found:
                raise InputError(
                    f"Two files in {folder} hold the tensor {name[:200]!r}.",
                    f"They are {found[name][0].name} and {path.name}.",
                    "Keep the files of only one copy of the model.",
                )
            found[name] = (path, tensor)
    return found
