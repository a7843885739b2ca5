"""Checks before any work: is the source whole, and do disk and memory suffice?

Nothing here loads a model; the shards are judged by their headers.
"""

import json
import re
import shutil
import tempfile
from math import prod
from pathlib import Path
from typing import Any

import psutil

from quant_assets.errors import InputError, ResourceError

# Bytes of one number of the types that safetensors files hold.
_DTYPE_BYTES = {
    "F64": 8,
    "F32": 4,
    "F16": 2,
    "BF16": 2,
    "F8_E4M3": 1,
    "F8_E5M2": 1,
    "F8_E8M0": 1,
    "I64": 8,
    "U64": 8,
    "I32": 4,
    "U32": 4,
    "I16": 2,
    "U16": 2,
    "I8": 1,
    "U8": 1,
    "BOOL": 1,
}
_MAX_HEADER_BYTES = 100_000_000  # the limit of the safetensors library
_INDEX = "model.safetensors.index.json"
_NUMBERED_SHARD = re.compile(r"^(?P<stem>.+)-(?P<number>\d{5})-of-(?P<total>\d{5})\.safetensors$")
_CGROUP_MEMORY = Path("/sys/fs/cgroup/memory.max")
_CGROUP_USED = Path("/sys/fs/cgroup/memory.current")
_FETCH_AGAIN = "Fetch the file again and compare its checksum with the publisher's."


def check_hf_folder(folder: Path) -> None:
    """Check a Hugging Face folder: its config, and every shard's presence, header and size.

    Raises `InputError` for the first thing that is wrong.
    """
    _check_config(folder)
    shards, tensors_by_shard = _expected_shards(folder)
    missing = [shard for shard in shards if not (folder / shard).is_file()]
    if missing:
        raise InputError(
            f"{len(missing)} of {len(shards)} shards of the model in {folder} are missing.",
            f"There is no {', no '.join(missing)}.",
            "Fetch the missing files into the folder.",
        )
    for shard in shards:
        header = read_safetensors_header(folder / shard)
        absent = sorted(tensors_by_shard.get(shard, set()) - header.keys())
        if absent:
            raise InputError(
                f"The shard {shard} lacks {len(absent)} tensors that the index puts there.",
                f"The first is {absent[0]}.",
                _FETCH_AGAIN,
            )


def _check_config(folder: Path) -> None:
    path = folder / "config.json"
    if not path.is_file():
        raise InputError(
            f"The folder {folder} has no config.json.",
            "A Hugging Face model folder holds config.json, a tokenizer and safetensors files.",
            "Give the folder that holds these files, or a GGUF file.",
        )
    config = _read_json(path)
    if not isinstance(config, dict) or not config.get("architectures"):
        raise InputError(
            f"The file {path} names no architecture.",
            "The list `architectures` says which converter applies.",
            "Use the config.json that the model was published with.",
        )


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(
            f"The file {path} cannot be read as JSON.",
            f"{type(error).__name__}: {error}",
            "Fetch the file again.",
        ) from error


def _expected_shards(folder: Path) -> tuple[list[str], dict[str, set[str]]]:
    """The shards that belong to the model, and the tensors that an index puts in each."""
    index = folder / _INDEX
    if index.is_file():
        content = _read_json(index)
        weight_map = content.get("weight_map") if isinstance(content, dict) else None
        if not isinstance(weight_map, dict) or not weight_map:
            raise InputError(
                f"The index {index} has no weight_map.",
                "It says which tensor lies in which shard.",
                "Fetch the file again.",
            )
        tensors: dict[str, set[str]] = {}
        for tensor, shard in weight_map.items():
            tensors.setdefault(Path(str(shard)).name, set()).add(tensor)
        return sorted(tensors), tensors
    found = sorted(path.name for path in folder.glob("model*.safetensors"))
    if not found:
        raise InputError(
            f"The folder {folder} has no model*.safetensors files.",
            "Weights in other formats (pickle files among them) are not read.",
            "Save the model with `save_pretrained(..., safe_serialization=True)` first.",
        )
    numbered = _NUMBERED_SHARD.match(found[0])
    if numbered is None:
        return found, {}
    total = int(numbered["total"])
    return [
        f"{numbered['stem']}-{number:05d}-of-{total:05d}.safetensors"
        for number in range(1, total + 1)
    ], {}


def read_safetensors_header(path: Path) -> dict[str, Any]:
    """The tensor descriptions in a safetensors file, checked against each other and its size.

    Raises `InputError` for a file that is cut off or whose header is no sound one.
    """
    size = path.stat().st_size
    with path.open("rb") as stream:
        prefix = stream.read(8)
        n_header = int.from_bytes(prefix, "little")
        if len(prefix) == 8 and n_header > _MAX_HEADER_BYTES:
            raise _corrupted(path, f"It claims a header of {n_header} bytes.")
        if len(prefix) < 8 or 8 + n_header > size:
            raise _truncated(path, 8 + n_header, size)
        try:
            header = json.loads(stream.read(n_header))
        except ValueError as error:
            raise _corrupted(path, f"It is no JSON: {error}.") from error
    if not isinstance(header, dict):
        raise _corrupted(path, "It is no table of tensors.")
    header.pop("__metadata__", None)
    end = 0
    for name, description in header.items():
        try:
            begin, stop = description["data_offsets"]
            expected = prod(description["shape"]) * _DTYPE_BYTES[description["dtype"]]
        except (TypeError, KeyError, ValueError) as error:
            raise _corrupted(path, f"It does not describe the tensor {name} properly.") from error
        if begin < 0 or stop - begin != expected:
            raise _corrupted(
                path, f"The tensor {name} needs {expected} bytes and has {stop - begin}."
            )
        end = max(end, stop)
    if 8 + n_header + end != size:
        if size < 8 + n_header + end:
            raise _truncated(path, 8 + n_header + end, size)
        raise _corrupted(path, f"The file is {size} bytes, the header describes fewer.")
    return header


def _truncated(path: Path, expected: int, size: int) -> InputError:
    return InputError(
        f"The shard {path} is cut off.",
        f"Its header describes {expected} bytes, it has {size}.",
        _FETCH_AGAIN,
    )


def _corrupted(path: Path, why: str) -> InputError:
    return InputError(f"The shard {path} has a damaged header.", why, _FETCH_AGAIN)


def check_output_folder(folder: Path) -> None:
    """Make `folder` and see that files can be written there; raises `ResourceError` when not."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ResourceError(
            f"The output folder {folder} cannot be written.",
            f"The system said: {error.strerror}.",
            "Choose another folder with --output-dir, or change its permissions.",
        ) from error


def check_disk(folder: Path, needed_bytes: int) -> None:
    """Raise `ResourceError` when `folder`'s disk has less than `needed_bytes` free."""
    free = shutil.disk_usage(folder).free
    if free < needed_bytes:
        raise ResourceError(
            f"The disk of {folder} has too little space.",
            f"The output needs {needed_bytes / 1e9:.3f} GB, {free / 1e9:.3f} GB are free.",
            "Free some space, choose another folder or a smaller level.",
        )


def available_memory() -> int:
    """Bytes of memory that this process can still take, within its container's limit."""
    available = int(psutil.virtual_memory().available)
    try:
        limit = int(_CGROUP_MEMORY.read_text()) - int(_CGROUP_USED.read_text())
    except (OSError, ValueError):
        return available
    return min(available, limit)


def check_memory(needed_bytes: int, available_bytes: int | None = None) -> None:
    """Raise `ResourceError` when the work needs more memory than there is."""
    available = available_memory() if available_bytes is None else available_bytes
    if available < needed_bytes:
        raise ResourceError(
            "There is too little memory.",
            f"The work needs about {needed_bytes / 1e9:.2f} GB, "
            f"{available / 1e9:.2f} GB are available.",
            "Close other programs, or take a machine with more memory.",
        )
