"""llama.cpp's GGUF importance matrix: each matrix's squared inputs, summed, and a count."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from quant_assets.atomic_files import atomic_path
from quant_assets.errors import InputError

_SUMS = ".in_sum2"
_COUNTS = ".counts"
_DATASETS = "imatrix.datasets"
_CHUNK_COUNT = "imatrix.chunk_count"
_CHUNK_SIZE = "imatrix.chunk_size"
_MAX_HEADER_TEXT = 127  # llama_model_kv_override.val_str

Values = npt.NDArray[np.float32]


@dataclass
class MatrixInputs:
    """What one weight tensor saw: `sums` is (experts, row length), `counts` is (experts,)."""

    sums: npt.NDArray[np.float64]
    counts: npt.NDArray[np.int64]

    @property
    def importances(self) -> Values:
        """The mean squared input; 1 for an expert that saw nothing, as llama-quantize does."""
        counts = self.counts.astype(np.float32)[:, None]
        sums = self.sums.astype(np.float32)
        means = np.divide(sums, counts, out=np.ones_like(sums), where=counts > 0)
        return means.ravel()


class ImportanceMatrix:
    """An importance matrix read from a file, as the quantization uses it."""

    def __init__(self, name: str, datasets: list[str], n_chunks: int, values: dict[str, Values]):
        self._name = name
        self._datasets = datasets
        self._n_chunks = n_chunks
        self._values = values

    def values(self, tensor_name: str) -> Values | None:
        """The importances of a tensor's columns, matrix by matrix, or None."""
        return self._values.get(tensor_name)

    @property
    def header_values(self) -> dict[str, str | int]:
        """The keys that llama-quantize adds to the output, in its order.

        The file is named without its folder, which says nothing of the content.
        """
        values: dict[str, str | int] = {"quantize.imatrix.file": self._name[:_MAX_HEADER_TEXT]}
        if self._datasets:
            values["quantize.imatrix.dataset"] = self._datasets[0][:_MAX_HEADER_TEXT]
        values["quantize.imatrix.entries_count"] = len(self._values)
        if self._n_chunks > 0:
            values["quantize.imatrix.chunks_count"] = self._n_chunks
        return values


def read_imatrix(path: Path) -> ImportanceMatrix:
    """Read a GGUF importance matrix of llama.cpp's or ours.

    Raises `InputError` for a file that is missing, none, or holds values that are not finite.
    """
    from gguf import GGUFReader

    if not path.is_file():
        raise InputError(
            f"There is no importance matrix at {path}.",
            "The file does not exist.",
            "Check the path; `--imatrix` takes a GGUF file made by llama-imatrix or by this tool.",
        )
    try:
        reader = GGUFReader(path)
        datasets = _field(reader, _DATASETS, [])
        n_chunks = int(_field(reader, _CHUNK_COUNT, 0))
        tensors = {tensor.name: np.asarray(tensor.data) for tensor in reader.tensors}
        names = [name.removesuffix(_SUMS) for name in tensors if name.endswith(_SUMS)]
        inputs = {}
        for name in names:
            counts = tensors[name + _COUNTS].ravel()
            inputs[name] = MatrixInputs(
                sums=tensors[name + _SUMS].reshape(counts.size, -1).astype(np.float64),
                counts=np.rint(counts).astype(np.int64),
            )
    except (ValueError, KeyError, IndexError, OSError) as error:
        raise InputError(
            f"The file {path} is no importance matrix in GGUF.",
            f"Reading it failed with {type(error).__name__}: {error}",
            "Use a file of llama-imatrix in its GGUF format, or let this tool compute one.",
        ) from error
    if not inputs:
        raise InputError(
            f"The file {path} holds no importances.",
            f"None of its tensors is named *{_SUMS}.",
            "Use a file of llama-imatrix in its GGUF format, or let this tool compute one.",
        )
    values = {name: entry.importances for name, entry in inputs.items()}
    for name, entry in values.items():
        if not np.isfinite(entry).all():
            raise InputError(
                f"The importance matrix {path} is damaged.",
                f"The entry of {name} holds values that are not finite.",
                "Compute it again.",
            )
    return ImportanceMatrix(path.name, datasets, n_chunks, values)


def _field(reader: Any, key: str, default: Any) -> Any:
    field = reader.get_field(key)
    return default if field is None else field.contents()


def write_imatrix(
    path: Path, inputs: dict[str, MatrixInputs], *, dataset: str, n_chunks: int, chunk_tokens: int
) -> None:
    """Write `inputs` to `path`, atomically, as llama-imatrix lays them out."""
    from gguf import GGUFWriter

    with atomic_path(path) as temporary:
        # llama-imatrix writes no architecture, so the key that the writer starts with goes.
        writer = GGUFWriter(temporary, arch="")
        writer.kv_data[0].clear()
        writer.add_type("imatrix")
        writer.add_array(_DATASETS, [dataset])
        writer.add_uint32(_CHUNK_COUNT, n_chunks)
        writer.add_uint32(_CHUNK_SIZE, chunk_tokens)
        for name in sorted(inputs):
            entry = inputs[name]
            writer.add_tensor(name + _SUMS, entry.sums.astype(np.float32))
            writer.add_tensor(name + _COUNTS, entry.counts.astype(np.float32)[:, None])
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
