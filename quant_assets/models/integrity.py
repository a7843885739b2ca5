"""Is a model whole? Its configuration and every weight file's header are read, never a weight."""

from pathlib import Path

from quant_assets.errors import InputError
from quant_assets.formats.gguf_header import GgufHeader, read_gguf_header, require_single_file
from quant_assets.formats.safetensors_header import tensors_of_folder
from quant_assets.models.hf_config import LIMITS, check_limit, count, read_config


def check_gguf(path: Path) -> GgufHeader:
    """Check a GGUF file of a whole model, of whatever kind: its header, size and counts.

    Raises `InputError` for the first thing that is wrong.
    """
    header = read_gguf_header(path)
    require_single_file(header, path)
    if not header.tensors:
        raise InputError(f"{path} holds no tensors.", "It is a vocabulary.", "Give a model.")
    for name, value in header.values.items():
        limit = LIMITS.get(name.partition(".")[2])
        if limit is not None:
            check_limit(value, limit, name, path)
            count(value, name, path)
    return header


def check_hf_folder(folder: Path) -> None:
    """Check a Hugging Face folder: its config, and every shard's presence, header and size.

    Raises `InputError` for the first thing that is wrong.
    """
    config = read_config(folder)
    architectures = config.get("architectures")
    if (
        not isinstance(architectures, list)
        or not architectures
        or not all(isinstance(name, str) for name in architectures)
    ):
        raise InputError(
            f"The file {folder / 'config.json'} names no architecture.",
            "The list `architectures` says which converter applies.",
            "Use the config.json that the model was published with.",
        )
    tensors_of_folder(folder)
