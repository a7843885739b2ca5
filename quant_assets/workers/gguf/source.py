"""Where the weights come from: rows of every tensor in the type of the lossless intermediate.

A Hugging Face folder is mapped by llama.cpp's own converter, lazily: its metadata is written as a
GGUF without data, and a tensor is read when its turn comes, straight from the shard where the
converter only renames it, through the converter's own arithmetic otherwise.
"""

import ctypes
import gc
import logging
import os
import shutil
import tempfile
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from rapidfuzz import process

from quant_assets.errors import InputError, QuantAssetsError
from quant_assets.formats.safetensors_header import SUFFIX, tensors_of_folder, weight_files
from quant_assets.models.integrity import check_gguf
from quant_assets.models.linked_model import link_model
from quant_assets.workers.gguf import ggml
from quant_assets.workers.gguf.ggml import GgufMetadata

Buffer = npt.NDArray[np.uint8]

_NUMPY_TYPES = {"float32": ggml.F32, "float16": ggml.F16}
_SAFETENSORS_TYPES = {"F32": ggml.F32, "F16": ggml.F16, "BF16": ggml.BF16}
_BYTES_PER_F32 = 4


class Rows(Protocol):
    """The rows of one tensor, in its source type."""

    def read(self, first_row: int, out: Buffer) -> None:
        """Fill `out`, which has room for whole rows, with the rows from `first_row`."""


class Source(Protocol):
    """A model whose tensors can be read row by row."""

    metadata: GgufMetadata
    intermediate: str

    def open_tensor(self, name: str) -> Rows:
        """The rows of a tensor; what this call reads into memory is freed with its result."""

    def prefetch(self, name: str) -> None:
        """Tell the system that the tensor is wanted soon."""

    def memory_bytes(self, name: str) -> int:
        """Memory that `open_tensor` takes, in bytes; 0 when the rows stay in their file."""


class FileRows:
    """Rows that lie one after the other in a file."""

    def __init__(self, descriptor: int, offset: int, row_bytes: int, path: Path) -> None:
        self._descriptor = descriptor
        self._offset = offset
        self._row_bytes = row_bytes
        self._path = path

    def read(self, first_row: int, out: Buffer) -> None:
        """Read from the file; raises `InputError` when it ends too early."""
        view = out.data
        position = self._offset + first_row * self._row_bytes
        while view:
            count = os.preadv(self._descriptor, [view], position)
            if count == 0:
                raise InputError(
                    f"The file {self._path} ends in the middle of a tensor.",
                    "It became shorter while it was read.",
                    "Restore the file, then run the same command again.",
                )
            view = view[count:]
            position += count


class MemoryRows:
    """Rows of a tensor that the converter computed, rounded to `ggml_type` as it does."""

    def __init__(self, values: npt.NDArray[Any], ggml_type: int) -> None:
        self._rows = values.reshape(-1, values.shape[-1])
        self._type = ggml_type

    def read(self, first_row: int, out: Buffer) -> None:
        """Round the rows into `out`."""
        n_rows = out.nbytes // ggml.row_bytes(self._type, self._rows.shape[-1])
        rows = self._rows[first_row : first_row + n_rows]
        if self._type == ggml.BF16:
            rows = np.ascontiguousarray(rows, dtype=np.float32)
            ggml.base_library().ggml_fp32_to_bf16_row_ref(
                rows.ctypes.data_as(ctypes.c_void_p),
                out.ctypes.data_as(ctypes.c_void_p),
                rows.size,
            )
        elif self._type in (ggml.F32, ggml.F16):
            dtype = np.float32 if self._type == ggml.F32 else np.float16
            out.view(dtype)[:] = rows.astype(dtype, copy=False).ravel()
        else:
            out[:] = np.ascontiguousarray(rows).view(np.uint8).ravel()


class GgufSource:
    """An F16, BF16 or F32 GGUF file."""

    def __init__(self, path: Path) -> None:
        check_gguf(path)
        self.metadata = GgufMetadata(path)
        self._path = path
        self._tensors = {tensor.name: tensor for tensor in self.metadata.tensors()}
        matrices = [tensor for tensor in self._tensors.values() if tensor.shape[1] > 1]
        self.intermediate = ggml.type_name(matrices[0].ggml_type) if matrices else "F32"
        self._descriptor = os.open(path, os.O_RDONLY)

    def open_tensor(self, name: str) -> FileRows:
        """The rows in the file."""
        tensor = self._tensors[name]
        row_bytes = ggml.row_bytes(tensor.ggml_type, tensor.shape[0])
        return FileRows(self._descriptor, tensor.offset, row_bytes, self._path)

    def prefetch(self, name: str) -> None:
        """Start reading the tensor."""
        tensor = self._tensors[name]
        _read_ahead(self._descriptor, tensor.offset, tensor.n_bytes)

    def memory_bytes(self, name: str) -> int:  # noqa: ARG002 the protocol's signature
        """Nothing: rows stay in the file."""
        return 0


@dataclass
class _ShardRange:
    path: Path
    offset: int
    n_bytes: int


class HuggingFaceSource:
    """A Hugging Face folder, seen through llama.cpp's converter."""

    def __init__(self, folder: Path, scratch: Path) -> None:
        self._descriptors: dict[Path, int] = {}
        # The converter opens the file of a computed tensor when its turn comes.
        links = tempfile.mkdtemp(prefix="quant-assets-")
        weakref.finalize(self, shutil.rmtree, links, ignore_errors=True)
        with _converter_errors(folder):
            weights = [path.name for path in weight_files(folder)]
            model = _converter(link_model(folder, Path(links)), weights, scratch)
            with _inference_mode():
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
        # The converter keeps every lazy tensor; what is computed must die after its turn.
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
        with _inference_mode():
            values = type(lazy).to_eager(lazy) if hasattr(type(lazy), "to_eager") else lazy
        return MemoryRows(values, self._types[name])

    def prefetch(self, name: str) -> None:
        """Start reading the tensor, where it lies in one piece."""
        found = self._ranges.get(name)
        if found is not None:
            _read_ahead(self._descriptor(found.path), found.offset, found.n_bytes)

    def memory_bytes(self, name: str) -> int:
        """Two float32 copies: the converter's arithmetic makes one from the other."""
        if name in self._ranges:
            return 0
        n_elements: int = prod(self._lazy[name].shape)
        return 2 * _BYTES_PER_F32 * n_elements

    def _descriptor(self, path: Path) -> int:
        if path not in self._descriptors:
            self._descriptors[path] = os.open(path, os.O_RDONLY)
        return self._descriptors[path]


def _read_ahead(descriptor: int, offset: int, n_bytes: int) -> None:
    if hasattr(os, "posix_fadvise"):  # macOS has none; it reads when asked
        os.posix_fadvise(descriptor, offset, n_bytes, os.POSIX_FADV_WILLNEED)


def float_type_of(folder: Path) -> str:
    """The float type of the first matrix in a Hugging Face folder's shards; F16 for any other."""
    for _, tensor in tensors_of_folder(folder).values():
        if len(tensor.shape) > 1:
            return tensor.dtype if tensor.dtype in _SAFETENSORS_TYPES else "F16"
    return "F16"


@contextmanager
def _inference_mode() -> Iterator[None]:
    import torch

    with torch.inference_mode():
        yield


@contextmanager
def _converter_errors(folder: Path) -> Iterator[None]:
    """Turn what the converter raises about a model into an `InputError`."""
    try:
        yield
    except (QuantAssetsError, MemoryError, OSError):
        raise
    except Exception as error:
        logging.getLogger(__name__).exception("the converter refused %s", folder)
        raise InputError(
            f"The model in {folder} cannot be converted to GGUF.",
            f"llama.cpp's converter said: {type(error).__name__}: {error}",
            "Check that the folder holds the model's own config and tokenizer files, unchanged.",
        ) from error


@contextmanager
def _without_collections() -> Iterator[None]:
    """Spare the imports the garbage collector, which goes through all they define many times."""
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def _hide_torch_from_transformers() -> None:
    """Spare transformers the seconds it takes to load what a config and a tokenizer never use.

    The converter wants nothing else of it; left alone, a config's checks import torch's compiler
    and its distributed tensors.
    """
    import transformers.utils

    def no_torch() -> bool:
        return False

    for module in (transformers.utils, transformers.utils.import_utils):
        module.is_torch_available = no_torch


def _converter(folder: Path, weights: list[str], scratch: Path) -> Any:
    """llama.cpp's converter for the model in `folder`, set to its own float type.

    `weights` are the files that hold the weights.
    """
    with _without_collections():
        _hide_torch_from_transformers()
        import gguf
        import torch
        from conversion import TEXT_MODEL_MAP, ModelBase, ModelType, get_model_architecture
        from conversion import get_model_class as class_of

    _forbid_remote_code()
    _name_weight_files(ModelBase, weights)
    hyper_parameters = ModelBase.load_hparams(folder, is_mistral_format=False)
    architecture = get_model_architecture(hyper_parameters, ModelType.TEXT)
    if architecture not in TEXT_MODEL_MAP:
        near = [name for name, _, _ in process.extract(architecture, list(TEXT_MODEL_MAP), limit=3)]
        raise InputError(
            f"The architecture {architecture} is not supported.",
            f"llama.cpp's converter does not know it; the nearest of its {len(TEXT_MODEL_MAP)} "
            f"are {', '.join(near)}.",
            "Use a model of a supported architecture.",
        )
    model = class_of(architecture)(folder, gguf.LlamaFileType.GUESSED, scratch / "unused.gguf")
    # Left alone the converter turns float32 weights into F16; float32 keeps them whole.
    first_matrix = next((tensor for _, tensor in model.get_tensors() if tensor.dim() > 1), None)
    if first_matrix is not None and first_matrix.dtype == torch.float32:
        model.ftype = gguf.LlamaFileType.ALL_F32
    return model


def _name_weight_files(model_base: Any, names: list[str]) -> None:
    """Tell the converter which files hold the weights; left alone it looks for pickles as well."""

    def part_names(_: Path, prefix: str, suffix: str) -> list[str]:
        return names if (prefix, suffix) == ("model", SUFFIX) else []

    model_base.get_model_part_names = staticmethod(part_names)


def _forbid_remote_code() -> None:
    """Make transformers refuse code out of a model's folder, whatever the converter asks for."""
    from transformers import dynamic_module_utils
    from transformers.models.auto import configuration_auto, tokenization_auto

    allowed_by_default = dynamic_module_utils.resolve_trust_remote_code

    def refuse(_: Any, *arguments: Any, **options: Any) -> Any:
        return allowed_by_default(False, *arguments, **options)

    for module in (configuration_auto, tokenization_auto):
        module.resolve_trust_remote_code = refuse


def _write_metadata(model: Any, path: Path) -> Path:
    """Write the converter's GGUF without its tensors' data, which a hole in the file stands for."""
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
    """What the converter rounds to its output type, before the rounding; the engine rounds itself.

    The rounding is the last step of the lazy chain, on one argument of the same shape.
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
    """What the last step of a lazy tensor was applied to; nothing for a computed one."""
    arguments: tuple[Any, ...] = getattr(lazy, "_args", ())
    return arguments


def _range_in_shard(lazy: Any, ggml_type: int, folder: Path) -> _ShardRange | None:
    """Where a tensor lies in a shard of `folder` as it is to be written; None for a computed one.

    Follows the lazy chain down to the shard through the steps that change no bit of a value: the
    passage from torch to numpy, the widening of bfloat16 to float32, and the dropping of last rows.
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
    if data_range is None or _SAFETENSORS_TYPES.get(str(getattr(local, "dtype", ""))) != ggml_type:
        return None
    *rows, row_elements = lazy.shape
    n_bytes = prod(rows) * ggml.row_bytes(ggml_type, row_elements)
    return _ShardRange(folder / Path(data_range.filename).name, data_range.offset, n_bytes)


def _keeps_bits(node: Any, parent: Any) -> bool:
    """Whether a lazy step leaves every value as it is, in the same order."""
    import torch
    from conversion import LazyTorchTensor

    _, *options = _arguments(node)
    same_shape = tuple(parent.shape) == tuple(node.shape)
    match options:
        case []:  # of the steps on a tensor alone, only this one gives a numpy array
            return same_shape and not isinstance(node, LazyTorchTensor)
        case [torch.dtype()]:
            return same_shape
        case [slice(start=None | 0, step=None | 1)]:
            return tuple(parent.shape[1:]) == tuple(node.shape[1:])
    return False
