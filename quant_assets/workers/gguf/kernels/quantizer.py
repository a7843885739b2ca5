"""Quantize float32 rows into blocks: with the project's kernel if it equals ggml's, else with ggml's.

Source: the reference quantizers of ggml (ggml/src/ggml-quants.c), reimplemented in `k_quants.cpp`.
The recipe: load the compiled library, compare every kernel byte for byte with ggml's on a sample of
hard values, and use those that agree. Life cycle: one `Quantizer` per run, shared by its threads.
"""

import ctypes
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from quant_assets.quantize.gguf.job import Kernel
from quant_assets.workers.gguf import ggml
from quant_assets.workers.gguf.kernels.build import library_path

KERNEL_TYPES: Final = ("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K")

_SAMPLE_ROW = 512
_Address = ctypes.c_void_p | int | None


class Quantizer:
    """Quantizes rows to the given types; thread-safe.

    The project's kernel is used if every byte equals ggml's on a sample of hard values, with
    importances and without. `kernels` records the choice by type name; `on_fallback` is called with
    the reason when a kernel is rejected.
    """

    def __init__(
        self,
        ggml_types: Iterable[int],
        on_fallback: Callable[[str], None] = lambda _: None,
        library: Path | None = None,
    ) -> None:
        self._library = ggml.base_library()
        self._own: dict[int, Any] = {}
        self.kernels: dict[str, Kernel] = {}
        own = _load(library or _built_library(), on_fallback)
        for ggml_type in sorted(set(ggml_types) - ggml.FLOAT_TYPES):
            self._library.ggml_quantize_init(ggml_type)
            name = ggml.type_name(ggml_type)
            kernel = own.get(name)
            if kernel is not None and not _agrees(kernel, ggml_type):
                on_fallback(
                    f"The kernel for {name} does not reproduce ggml's bytes here; using ggml's."
                )
                kernel = None
            if kernel is not None:
                self._own[ggml_type] = kernel
            self.kernels[name] = "ggml" if kernel is None else "own"

    def quantize(
        self,
        ggml_type: int,
        rows: _Address,
        blocks: _Address,
        n_rows: int,
        row_elements: int,
        importances: _Address,
    ) -> None:
        """Quantize `n_rows` float32 rows at `rows` into `blocks`; both are addresses.

        `importances` is the address of one float32 per column, or None.
        """
        kernel = self._own.get(ggml_type)
        if kernel is not None:
            kernel(rows, blocks, n_rows, row_elements, importances)
        else:
            self._library.ggml_quantize_chunk(
                ggml_type, rows, blocks, 0, n_rows, row_elements, importances
            )


def _built_library() -> Path | None:
    paths = (library_path(native=native) for native in (True, False))
    return next((path for path in paths if path.exists()), None)


def _load(path: Path | None, on_fallback: Callable[[str], None]) -> dict[str, Any]:
    """The kernels in the library `path`, by type name."""
    if path is None:
        return {}
    try:
        library = ctypes.CDLL(str(path))
    except OSError as error:
        on_fallback(f"The kernels in {path} cannot be loaded; using ggml's ({error}).")
        return {}
    kernels = {}
    for name in KERNEL_TYPES:
        kernel = getattr(library, f"quantize_{name.lower()}", None)
        if kernel is not None:
            address, count = ctypes.c_void_p, ctypes.c_int64
            kernel.restype, kernel.argtypes = None, [address, address, count, count, address]
            kernels[name] = kernel
    return kernels


def _agrees(kernel: Any, ggml_type: int) -> bool:
    rows = _hard_rows()
    n_rows, row_elements = rows.shape
    importances = np.linspace(0, 2, row_elements, dtype=np.float32) ** 3
    ours = np.zeros(n_rows * ggml.row_bytes(ggml_type, row_elements), dtype=np.uint8)
    theirs = np.zeros_like(ours)
    for weights in (None, importances.ctypes.data):
        kernel(rows.ctypes.data, ours.ctypes.data, n_rows, row_elements, weights)
        ggml.base_library().ggml_quantize_chunk(
            ggml_type, rows.ctypes.data, theirs.ctypes.data, 0, n_rows, row_elements, weights
        )
        if not np.array_equal(ours, theirs):
            return False
    return True


@cache
def _hard_rows() -> npt.NDArray[np.float32]:
    """Rows that expose any deviation from ggml's arithmetic: many scales, ties, zeros."""
    generator = np.random.default_rng(0)
    normal = generator.standard_normal((5, _SAMPLE_ROW))
    outliers = np.where(generator.random(normal.shape) < 0.01, 1000 * normal, normal)
    sparse = np.where(generator.random(normal.shape) < 0.7, 0, normal)
    scales = np.exp(generator.uniform(-60, 30, normal.shape))
    flat = np.repeat(normal[:, ::32], 32, axis=1)
    kinds = (0.02 * normal, outliers, sparse, scales * normal, flat, np.round(4 * normal) / 8,
             1 + abs(normal), -1 - abs(normal), 1e-39 * normal)  # fmt: skip
    # bfloat16 values have many ties, float32 values few: half of the rows each.
    rows = np.concatenate(kinds).astype(np.float32)
    rows[::2].view(np.uint32)[:] &= 0xFFFF0000
    return rows
