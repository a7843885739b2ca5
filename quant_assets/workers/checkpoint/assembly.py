"""Assemble a Hugging Face folder from parts: weights, index, configuration, tokenizer."""

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from quant_assets.artifacts.manifest import MANIFEST_NAME
from quant_assets.atomic_files import atomic_path, write_text_atomically
from quant_assets.formats.safetensors_header import (
    INDEX_NAME,
    SUFFIX,
    StoredTensor,
    encode_header,
    read_safetensors_header,
    require_own_file,
    shard_names,
)
from quant_assets.models.hf_config import CONFIG_NAME, read_config
from quant_assets.models.identity import COMPANION_PATTERNS, SOURCE_MANIFEST

MAX_SHARD_BYTES = 4_000_000_000
_COPY_BYTES = 1 << 22
_NOT_COPIED = (f"*{SUFFIX}.index.json", SOURCE_MANIFEST, MANIFEST_NAME)


def join_safetensors(parts: Sequence[Path], folder: Path) -> list[str]:
    """Join safetensors files into shards of at most `MAX_SHARD_BYTES`, with an index if needed.

    Tensor bytes are copied, never loaded. Returns the names of the files written.
    """
    headers = {part: read_safetensors_header(part) for part in parts}
    shards: list[list[Path]] = [[]]
    size = 0
    for part in parts:
        part_bytes = part.stat().st_size
        if shards[-1] and size + part_bytes > MAX_SHARD_BYTES:
            shards.append([])
            size = 0
        shards[-1].append(part)
        size += part_bytes
    total = len(shards)
    names = shard_names(total)
    weight_map: dict[str, str] = {}
    data_bytes = 0
    for name, members in zip(names, shards, strict=True):
        merged: list[StoredTensor] = []
        offset = 0
        for part in members:
            header = headers[part]
            for tensor in header.tensors.values():
                merged.append(replace(tensor, begin=tensor.begin + offset, end=tensor.end + offset))
                weight_map[tensor.name] = name
            offset += header.data_bytes
        data_bytes += offset
        _write(folder / name, merged, [(part, headers[part].data_start) for part in members])
    if total > 1:
        index = {"metadata": {"total_size": data_bytes}, "weight_map": weight_map}
        write_text_atomically(folder / INDEX_NAME, json.dumps(index, indent=2))
        return [*names, INDEX_NAME]
    return names


def _write(path: Path, tensors: Sequence[StoredTensor], parts: Sequence[tuple[Path, int]]) -> None:
    with atomic_path(path) as temporary, temporary.open("wb") as out:
        out.write(encode_header(tensors))
        for part, start in parts:
            with part.open("rb") as stream:
                stream.seek(start)
                shutil.copyfileobj(stream, out, _COPY_BYTES)


def tensor_facts(folder: Path, names: Sequence[str]) -> tuple[int, dict[str, int]]:
    """(bytes of all tensors, tensor count per dtype) of the safetensors files among `names`."""
    size = 0
    types: dict[str, int] = {}
    for name in names:
        if name.endswith(SUFFIX):
            header = read_safetensors_header(folder / name)
            size += header.data_bytes
            for tensor in header.tensors.values():
                types[tensor.dtype] = types.get(tensor.dtype, 0) + 1
    return size, types


def copy_companions(
    source: Path, output: Path, dtype: str, quantization_config: Mapping[str, Any]
) -> list[str]:
    """Copy tokenizer, chat template and generation settings unchanged; extend the config.

    Returns the names of the files written.
    """
    names = []
    for path in _companions(source):
        if path.name != CONFIG_NAME:
            shutil.copyfile(path, output / path.name)
            names.append(path.name)
    config = read_config(source)
    # transformers 5 names and the older ones, which other software still reads.
    config["dtype"] = config["torch_dtype"] = dtype
    rope = config.get("rope_parameters")
    if isinstance(rope, dict) and "rope_theta" in rope:
        config.setdefault("rope_theta", rope["rope_theta"])
        if rope.get("rope_type", "default") != "default":
            config.setdefault(
                "rope_scaling", {key: rope[key] for key in rope if key != "rope_theta"}
            )
    config["quantization_config"] = dict(quantization_config)
    write_text_atomically(output / CONFIG_NAME, json.dumps(config, indent=2))
    return [*names, CONFIG_NAME]


def _companions(source: Path) -> Iterator[Path]:
    paths = {
        path for pattern in COMPANION_PATTERNS for path in source.glob(pattern) if path.is_file()
    }
    excluded = {path for pattern in _NOT_COPIED for path in source.glob(pattern)}
    for path in sorted(paths - excluded):
        yield require_own_file(path, source)
