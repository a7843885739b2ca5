"""Sums of squared inputs of a model's matrices, collected while llama.cpp evaluates it.

Source: `IMatrixCollector::collect_imatrix` of llama.cpp (tools/imatrix/imatrix.cpp), which this
follows in what is summed and which tensors are observed.
"""

import ctypes
from typing import Any

import numpy as np
import numpy.typing as npt

from quant_assets.workers.gguf import ggml
from quant_assets.workers.gguf.imatrix_file import MatrixInputs

_MIN_ROWS = 16  # llama-imatrix ignores smaller batches
_OBSERVED_PREFIX = "blk."


class Collector:
    """Sums the squared inputs per matrix; passed to llama.cpp as its evaluation callback.

    `error` is the first exception raised inside the callback.
    """

    def __init__(self) -> None:
        self.inputs: dict[str, MatrixInputs] = {}
        self.error: Exception | None = None
        self._library = ggml.base_library()

    def __call__(self, pointer: int, ask: bool, _: Any) -> bool:
        """llama.cpp's callback: asks whether a node is wanted, then passes the computed node."""
        try:
            node = ggml.Tensor.from_address(pointer)
            if ask:
                return self._wanted(node)
            if self._operation(node) == "MUL_MAT_ID":
                self._add_experts(node)
            else:
                self._add_matrix(node)
        except Exception as error:  # exceptions cannot cross C code; the caller raises it later
            self.error = self.error or error
            return False
        return True

    def _operation(self, node: ggml.Tensor) -> str:
        name: bytes = self._library.ggml_op_name(node.op)
        return name.decode()

    def _wanted(self, node: ggml.Tensor) -> bool:
        operation = self._operation(node)
        if operation == "MUL_MAT_ID":
            return True
        if operation != "MUL_MAT":
            return False
        inputs = node.src[1].contents
        return bool(
            inputs.ne[1] >= _MIN_ROWS
            and inputs.type == ggml.F32
            and node.src[0].contents.name.decode().startswith(_OBSERVED_PREFIX)
        )

    def _add_matrix(self, node: ggml.Tensor) -> None:
        weights, inputs = node.src[0].contents, node.src[1].contents
        row = weights.ne[0]
        n_matrices = weights.ne[2] * weights.ne[3]
        entry = self._entry(weights, n_counts=1, n_values=row * n_matrices)
        values = _array(inputs, np.float32)
        sums = np.square(values, dtype=np.float64).sum(axis=2)  # (ne3, ne2, ne0)
        by_matrix = entry.sums.reshape(weights.ne[3], weights.ne[2], row)
        for i3 in range(inputs.ne[3]):
            for i2 in range(inputs.ne[2]):
                by_matrix[i3 % weights.ne[3], i2 % weights.ne[2]] += sums[i3, i2]
        entry.counts[0] += inputs.ne[1] * inputs.ne[2] * inputs.ne[3] // n_matrices

    def _add_experts(self, node: ggml.Tensor) -> None:
        weights, inputs, chosen = (node.src[index].contents for index in range(3))
        n_experts = weights.ne[2]
        entry = self._entry(weights, n_counts=n_experts, n_values=weights.ne[0] * n_experts)
        values = np.square(_array(inputs, np.float32)[0], dtype=np.float64)  # (tokens, slots, row)
        experts = _array(chosen, np.int32)[0, 0]  # (tokens, used experts)
        for slot in range(experts.shape[1]):
            used = experts[:, slot]
            np.add.at(entry.sums, used, values[:, slot % values.shape[1]])
            np.add.at(entry.counts, used, 1)

    def _entry(self, weights: ggml.Tensor, *, n_counts: int, n_values: int) -> MatrixInputs:
        name = weights.name.decode()
        if name not in self.inputs:
            self.inputs[name] = MatrixInputs(
                sums=np.zeros((n_counts, n_values // n_counts)),
                counts=np.zeros(n_counts, dtype=np.int64),
            )
        return self.inputs[name]


def _array(tensor: ggml.Tensor, dtype: type) -> npt.NDArray[Any]:
    """A view of a tensor in this process's memory, slowest dimension first."""
    shape = tuple(reversed(tensor.ne))
    strides = tuple(reversed(tensor.nb))
    n_bytes = sum((extent - 1) * stride for extent, stride in zip(shape, strides, strict=True))
    memory = (ctypes.c_uint8 * (n_bytes + np.dtype(dtype).itemsize)).from_address(tensor.data)
    return np.lib.stride_tricks.as_strided(np.frombuffer(memory, dtype=dtype), shape, strides)
