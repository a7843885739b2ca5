"""llama.cpp's imatrix format in GGUF: per weight tensor the sums of squared inputs and a count."""

from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final

import numpy as np
import numpy.typing as npt

from quant_assets.atomic_files import atomic_path
from quant_assets.errors import InputError
from quant_assets.formats.gguf_header import HeaderTensor, read_gguf_header

_SUMS = ".in_sum2"
_COUNTS = ".counts"
_DATASETS = "imatrix.datasets"
_CHUNK_COUNT = "imatrix.chunk_count"
_CHUNK_SIZE = "imatrix.chunk_size"
_MAX_UINT32: Final = 2**32 - 1
_MAX_COUNT: Final = 2.0**62  # a count becomes an int64
_MAX_HEADER_TEXT = 127  # llama_model_kv_override.val_str

Values = npt.NDArray[np.float32]


@dataclass
class MatrixInputs:
    """Squared inputs of one weight tensor: `sums` is (experts, row length), `counts` (experts,)."""

    sums: npt.NDArray[np.float64]
    counts: npt.NDArray[np.int64]

    @property
    def importances(self) -> Values:
        """The mean squared input; 1 for an expert without inputs, as in llama-quantize."""
        counts = self.counts.astype(np.float32)[:, None]
        sums = self.sums.astype(np.float32)
        means = np.divide(sums, counts, out=np.ones_like(sums), where=counts > 0)
        return means.ravel()


class ImatrixFile:
    """The contents of an imatrix file, in the form that the quantization uses."""

    def __init__(self, name: str, datasets: list[str], n_chunks: int, values: dict[str, Values]):
        self._name = name
        self._datasets = datasets
        self._n_chunks = n_chunks
        self._values = values

    def values(self, tensor_name: str) -> Values | None:
        """The importances of a tensor's columns, matrix by matrix; None if it has no entry."""
        return self._values.get(tensor_name)

    @property
    def header_values(self) -> dict[str, str | int]:
        """The keys that llama-quantize adds to the output, in its order.

        The file name goes without its folder, which is unrelated to the content.
        """
        values: dict[str, str | int] = {"quantize.imatrix.file": self._name[:_MAX_HEADER_TEXT]}
        if self._datasets:
            values["quantize.imatrix.dataset"] = self._datasets[0][:_MAX_HEADER_TEXT]
        values["quantize.imatrix.entries_count"] = len(self._values)
        if self._n_chunks > 0:
            values["quantize.imatrix.chunks_count"] = self._n_chunks
        return values


def read_imatrix(path: Path) -> ImatrixFile:
    """Read a GGUF importance matrix written by llama-imatrix or by `write_imatrix`.

    Raises `InputError` for a file that is missing, is not an imatrix, or has non-finite values.
    """
    if not path.is_file():
        raise InputError(
            f"There is no importance matrix at {path}.",
            "The file does not exist.",
            "Check the path; `--imatrix` takes a GGUF file made by llama-imatrix or by this tool.",
        )
    header = read_gguf_header(path)
    datasets = header.values.get(_DATASETS, ())
    n_chunks = header.values.get(_CHUNK_COUNT, 0)
    if (
        not isinstance(datasets, tuple)
        or not all(isinstance(name, str) for name in datasets)
        or type(n_chunks) is not int
        or not 0 <= n_chunks <= _MAX_UINT32
    ):
        raise _not_an_imatrix(path, f"Its {_DATASETS} or {_CHUNK_COUNT} has the wrong type.")
    tensors = {tensor.name: tensor for tensor in header.tensors}
    names = [name.removesuffix(_SUMS) for name in tensors if name.endswith(_SUMS)]
    if not names:
        raise InputError(
            f"The file {path} holds no importances.",
            f"None of its tensors is named *{_SUMS}.",
            "Use a file of llama-imatrix in its GGUF format, or let this tool measure one.",
        )
    values = {}
    with path.open("rb") as stream:
        for name in names:
            sums, counts = tensors[name + _SUMS], tensors.get(name + _COUNTS)
            if (
                counts is None
                or sums.type_name != "F32"
                or counts.type_name != "F32"
                or sums.n_elements != sums.shape[0] * counts.n_elements
            ):
                raise _not_an_imatrix(
                    path, f"The sums and counts of {name} have incompatible shapes."
                )
            entry = [_read(stream, header.data_start, part) for part in (sums, counts)]
            if not all(np.isfinite(part).all() and (part >= 0).all() for part in entry):
                raise InputError(
                    f"The importance matrix {path} is damaged.",
                    f"The entry of {name} holds negative or non-finite values.",
                    "Measure it again.",
                )
            values[name] = MatrixInputs(
                sums=entry[0].reshape(counts.n_elements, -1).astype(np.float64),
                counts=np.rint(np.minimum(entry[1], _MAX_COUNT)).astype(np.int64),
            ).importances
    return ImatrixFile(
        path.name, [name for name in datasets if isinstance(name, str)], n_chunks, values
    )


def _read(stream: BinaryIO, data_start: int, tensor: HeaderTensor) -> Values:
    stream.seek(data_start + tensor.offset)
    return np.frombuffer(stream.read(tensor.n_bytes), dtype=np.float32)


def _not_an_imatrix(path: Path, why: str) -> InputError:
    return InputError(
        f"The file {path} is not an importance matrix in GGUF.",
        why,
        "Use a file of llama-imatrix in its GGUF format, or let this tool measure one.",
    )


def write_imatrix(
    path: Path, inputs: dict[str, MatrixInputs], *, dataset: str, n_chunks: int, chunk_tokens: int
) -> None:
    """Write `inputs` to `path` atomically, in the layout of llama-imatrix."""
    from gguf import GGUFWriter

    with atomic_path(path) as temporary:
        # llama-imatrix writes no architecture, so remove the key that the writer starts with.
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
