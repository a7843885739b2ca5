"""A Hugging Face folder as a source, mapped lazily by llama.cpp's own converter.

The converter writes its metadata as a GGUF without data. A tensor is read when its turn comes:
straight from the shard if the converter only renames it, otherwise through the converter's own
arithmetic.
"""

import logging
import os
import shutil
import tempfile
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from math import prod
from pathlib import Path
from typing import Any

from quant_assets.formats.safetensors_header import weight_files
from quant_assets.models.linked_model import link_model
from quant_assets.workers.gguf import ggml
from quant_assets.workers.gguf.converter import converter_errors, converter_of, inference_mode
from quant_assets.workers.gguf.ggml import GgufMetadata
from quant_assets.workers.gguf.source import (
    SAFETENSORS_TYPES,
    FileRows,
    MemoryRows,
    Rows,
    read_ahead,
)

logger = logging.getLogger(__name__)

_NUMPY_TYPES = {"float32": ggml.F32, "float16": ggml.F16}
_BYTES_PER_F32 = 4


@dataclass
class _ShardRange:
    path: Path
    offset: int
    n_bytes: int


class HuggingFaceSource:
    """A Hugging Face folder, read through llama.cpp's converter.

    With `any_vocabulary` the metadata name no tokenizer where the folder's cannot be converted.
    """

    def __init__(self, folder: Path, scratch: Path, *, any_vocabulary: bool = False) -> None:
        self._descriptors: dict[Path, int] = {}
        # The converter opens the file of a computed tensor lazily, so the links must persist.
        links = tempfile.mkdtemp(prefix="quant-assets-")
        weakref.finalize(self, shutil.rmtree, links, ignore_errors=True)
        with converter_errors(folder):
            weights = [path.name for path in weight_files(folder)]
            model = converter_of(link_model(folder, Path(links)), weights, scratch)
            if any_vocabulary:
                model.set_vocab = partial(_set_any_vocabulary, model, model.set_vocab)
            with inference_mode():
                model.prepare_tensors()
                model.prepare_metadata(vocab_only=False)
            self.intermediate = model.ftype.name.rpartition("_")[2]
            (infos,) = model.gguf_writer.tensors
            self._types = {name: int(info.dtype) for name, info in infos.items()}
            self._lazy = {name: _unrounded(info.tensor, info) for name, info in infos.items()}
            path = _write_metadata(model, scratch / "metadata.gguf")
        self._ranges = {
            name: found
            for name, lazy in self._lazy.items()
            if (found := _range_in_shard(lazy, self._types[name], folder)) is not None
        }
        # The converter holds every lazy tensor; release them, so computed values can be freed.
        for info in infos.values():
            info.tensor = None
        model.model_tensors.clear()
        self.metadata = GgufMetadata(path)

    def open_tensor(self, name: str) -> Rows:
        """The rows in the shard, or the values that the converter computes."""
        lazy = self._lazy.pop(name)
        found = self._ranges.get(name)
        if found is not None:
            n_rows = prod(lazy.shape[:-1])
            return FileRows(
                self._descriptor(found.path), found.offset, found.n_bytes // n_rows, found.path
            )
        with inference_mode():
            values = type(lazy).to_eager(lazy) if hasattr(type(lazy), "to_eager") else lazy
        return MemoryRows(values, self._types[name])

    def prefetch(self, name: str) -> None:
        """Start reading the tensor if it is contiguous in a shard."""
        found = self._ranges.get(name)
        if found is not None:
            read_ahead(self._descriptor(found.path), found.offset, found.n_bytes)

    def memory_bytes(self, name: str) -> int:
        """Two float32 copies: input and result of the converter's arithmetic."""
        if name in self._ranges:
            return 0
        n_elements: int = prod(self._lazy[name].shape)
        return 2 * _BYTES_PER_F32 * n_elements

    def _descriptor(self, path: Path) -> int:
        if path not in self._descriptors:
            self._descriptors[path] = os.open(path, os.O_RDONLY)
        return self._descriptors[path]


def _set_any_vocabulary(model: Any, set_own: Callable[[], None]) -> None:
    """Write the folder's vocabulary, or the number of its tokens where that fails."""
    writer = model.gguf_writer
    before = [dict(values) for values in writer.kv_data]
    try:
        set_own()
    except Exception as error:
        logger.info("The header is planned without its tokenizer: %s", error)
        writer.kv_data = before
        writer.add_tokenizer_model("none")
        if f"{writer.arch}.vocab_size" not in before[0]:
            writer.add_vocab_size(model.hparams["vocab_size"])


def _write_metadata(model: Any, path: Path) -> Path:
    """Write the converter's GGUF with a hole in the file in place of the tensor data."""
    writer = model.gguf_writer
    n_bytes = sum(
        writer.ggml_pad(info.nbytes, writer.data_alignment) for info in writer.tensors[0].values()
    )
    writer.write_header_to_file(path=path)
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    header_bytes = writer.ggml_pad(path.stat().st_size, writer.data_alignment)
    os.truncate(path, header_bytes + n_bytes)
    return path


def _unrounded(tensor: Any, info: Any) -> Any:
    """The values before the converter rounds them to its output type; the engine rounds itself.

    The rounding is the last step of the lazy chain, with one argument of the same shape.
    """
    arguments = _arguments(tensor)
    if (
        int(info.dtype) in ggml.FLOAT_TYPES
        and arguments
        and isinstance(arguments[0], type(tensor))
        and str(arguments[0].dtype) in _NUMPY_TYPES
        and tuple(arguments[0].shape) == tuple(info.shape)
    ):
        return arguments[0]
    return tensor


def _arguments(lazy: Any) -> tuple[Any, ...]:
    """The arguments of a lazy tensor's last step; none for an evaluated tensor."""
    arguments: tuple[Any, ...] = getattr(lazy, "_args", ())
    return arguments


def _range_in_shard(lazy: Any, ggml_type: int, folder: Path) -> _ShardRange | None:
    """The range of a shard in `folder` that holds a tensor's output bytes; None if it is computed.

    Follows the lazy chain down to the shard through steps that preserve every value's bits:
    conversion from torch to numpy, widening bfloat16 to float32, and dropping trailing rows.
    """
    from conversion import LazyTorchTensor

    node = lazy
    while isinstance(parent := next(iter(_arguments(node)), None), LazyTorchTensor):
        if not _keeps_bits(node, parent):
            return None
        node = parent
    arguments = _arguments(node)
    local = arguments[0] if len(arguments) == 1 else None
    data_range = getattr(local, "data_range", None)
    if data_range is None or SAFETENSORS_TYPES.get(str(getattr(local, "dtype", ""))) != ggml_type:
        return None
    *rows, row_elements = lazy.shape
    n_bytes = prod(rows) * ggml.row_bytes(ggml_type, row_elements)
    return _ShardRange(folder / Path(data_range.filename).name, data_range.offset, n_bytes)


def _keeps_bits(node: Any, parent: Any) -> bool:
    """Whether a lazy step preserves every value and their order."""
    import torch
    from conversion import LazyTorchTensor

    _, *options = _arguments(node)
    same_shape = tuple(parent.shape) == tuple(node.shape)
    match options:
        case []:  # the only step without options that returns a numpy array
            return same_shape and not isinstance(node, LazyTorchTensor)
        case [torch.dtype()]:
            return same_shape
        case [slice(start=None | 0, step=None | 1)]:
            return tuple(parent.shape[1:]) == tuple(node.shape[1:])
    return False
