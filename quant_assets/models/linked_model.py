"""A model as third-party loaders see it: links to the files of its identity and nothing else.

Loaders pick among the files of a folder: pickles beside safetensors, code, adapters of other
models, a second copy of the weights. A folder of links leaves them no choice, so that everything
they read has been checked and is part of the source's identity.
"""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from quant_assets.formats.safetensors_header import SUFFIX, weight_files
from quant_assets.models.identity import model_files

_NOT_LINKED = frozenset(
    {"adapter_config.json"}
)  # it makes loaders fetch the weights of another model


def link_model(model: Path, parent: Path) -> Path:
    """Link the files of `model`, a folder or a GGUF file, into a new folder inside `parent`.

    The result keeps the model's name, which loaders write into their output. Raises
    `InputError` for files that lead out of the model's folder.
    """
    model = model.absolute()
    folder = parent / (model.name if model.is_dir() else model.stem)
    folder.mkdir(parents=True)
    if not model.is_dir():
        (folder / model.name).symlink_to(model)
        return folder / model.name
    weights = set(weight_files(model))
    for file in model_files(model):
        is_other_copy = file.parent == model and file.suffix == SUFFIX and file not in weights
        if is_other_copy or file.name in _NOT_LINKED:
            continue
        link = folder / file.relative_to(model)
        link.parent.mkdir(exist_ok=True)
        link.symlink_to(file)
    return folder


@contextmanager
def linked_model(model: Path) -> Iterator[Path]:
    """Links to the model's files in a temporary folder; see `link_model`."""
    with tempfile.TemporaryDirectory(prefix="quant-assets-") as parent:
        yield link_model(model, Path(parent))
