"""Integrity of a model: its configuration and every weight file's header; no weight is read."""

from pathlib import Path

from quant_assets.errors import InputError
from quant_assets.formats.gguf_header import (
    GgufHeader,
    read_gguf_header,
    require_single_file,
    require_tensors,
)
from quant_assets.formats.json_files import read_json
from quant_assets.formats.safetensors_header import (
    is_plain_name,
    require_own_file,
    tensors_of_folder,
)
from quant_assets.models.hf_config import LIMITS, check_limit, count, read_config, short

_MODULES = "modules.json"
_LAYER_COUNTS = ("num_hidden_layers", "n_layer", "num_layers")


def check_gguf(path: Path) -> GgufHeader:
    """Check a GGUF file that holds a whole model: its header, size and counts.

    Raises `InputError` for the first thing that is wrong.
    """
    header = read_gguf_header(path)
    require_single_file(header, path)
    require_tensors(header, path)
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
    tensors = tensors_of_folder(folder)
    architectures = config.get("architectures")
    if (
        not isinstance(architectures, list)
        or not architectures
        or not all(isinstance(name, str) for name in architectures)
    ):
        raise InputError(
            f"The file {folder / 'config.json'} names no architecture.",
            "The list `architectures` selects the converter.",
            "Use the config.json the model was published with.",
        )
    n_layers = max(
        (value for name in _LAYER_COUNTS if type(value := config.get(name)) is int), default=0
    )
    if n_layers > len(tensors):
        raise InputError(
            f"The model in {folder} contradicts its config.json.",
            f"It declares {n_layers} layers, but the files hold {len(tensors)} tensors.",
            "Use the config.json the model was published with.",
        )
    _check_modules(folder)


def _check_modules(folder: Path) -> None:
    """Check that the modules of sentence-transformers, which converters follow, lie in the folder."""
    path = folder / _MODULES
    if not path.exists():
        return
    modules = read_json(require_own_file(path, folder))
    for module in modules if isinstance(modules, list) else [modules]:
        place = module.get("path") if isinstance(module, dict) else None
        if not isinstance(place, str) or (place and not is_plain_name(place)):
            raise InputError(
                f"The file {path} does not name modules in its folder.",
                f"It names {short(place)}.",
                "Do not use this model, or fetch it again from its publisher.",
            )
