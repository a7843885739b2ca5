"""Tensors of a model folder by name, and the names that transformers gives them."""

from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from quant_assets.formats.safetensors_header import shard_index, tensors_of_folder

_FIRST_RENAMING_VERSION = 5  # of transformers


class TensorFiles:
    """The tensors in a folder's safetensors files, by name.

    `stored_as` maps further names under which tensors can be read to their names in the files.
    """

    def __init__(self, folder: Path) -> None:
        self.stored_as: dict[str, str] = {}
        index = shard_index(folder)
        self._tensors = {
            name: found
            for name, found in tensors_of_folder(folder).items()
            if index is None or name in index
        }

    @property
    def names(self) -> list[str]:
        """All names in the files, sorted."""
        return sorted(self._tensors)

    def __contains__(self, name: str) -> bool:
        return name in self._tensors or name in self.stored_as

    def read(self, name: str) -> torch.Tensor:
        """One tensor, on the CPU."""
        stored = self.stored_as.get(name, name)
        path, _ = self._tensors[stored]
        with safe_open(path, framework="pt") as reader:
            tensor: torch.Tensor = reader.get_tensor(stored)
        return tensor

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of one tensor, without reading it."""
        return self._tensors[name][1].shape


def renamed(model: Any, names: list[str]) -> dict[str, str]:
    """Parameters of `model` whose name differs from that in the files, with the latter as value."""
    import transformers

    if int(transformers.__version__.split(".", 1)[0]) < _FIRST_RENAMING_VERSION:
        return {}
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightRenaming

    renamings = [
        change for change in get_model_conversion_mapping(model) if type(change) is WeightRenaming
    ]
    found = {}
    for name in names:
        now = name
        for renaming in renamings:
            now = renaming.rename_source_key(now)[0]
        if now != name:
            found[now] = name
    return found
