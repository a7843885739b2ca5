"""The types that llama.cpp gives the tensors of a model at a level, as decided by llama.cpp itself.

Source: src/llama-quant.cpp of llama.cpp. Its functions (declared in src/llama-ext.h) are called
where the build exports them and they apply (`types_from_library`); otherwise the log of a dry run of
`llama_model_quantize` on the metadata alone is parsed (`types_from_dry_run`).
"""

import ctypes
import re
from collections.abc import Sequence
from typing import Any

from quant_assets.errors import InputError
from quant_assets.formats.gguf_levels import GgufLevel
from quant_assets.quantize.gguf.job import TypePolicy
from quant_assets.workers.gguf import ggml
from quant_assets.workers.gguf.ggml import GgufMetadata, GgufTensor

_UNKNOWN_ARCHITECTURE = re.compile(r"unknown model architecture: '(.*)'")
_DRY_RUN_LINE = re.compile(
    r"\[\s*\d+/\s*\d+\]\s+(?P<name>\S+)\s+- \[[^\]]*\], type =\s*(?P<old>\w+),"
    r" size =\s*[\d.]+ MiB(?: ->\s*[\d.]+ MiB \((?P<new>\w+)\))?"
)
_COMPUTE_TYPES = "_Z25llama_quant_compute_typesP19quantize_state_impl11llama_ftypePP11ggml_tensor"
_SYMBOLS = {
    "init": "_Z16llama_quant_initPK11llama_modelPK27llama_model_quantize_params",
    "free": "_Z16llama_quant_freeP19quantize_state_impl",
    "compute": f"{_COMPUTE_TYPES}P9ggml_typem",
}


def decide_types(
    metadata: GgufMetadata, tensors: Sequence[GgufTensor], level: GgufLevel, *, has_imatrix: bool
) -> tuple[list[int], TypePolicy]:
    """(type of each tensor, how it was decided). Raises `InputError` for an unsupported model."""
    # `llama_quant_compute_types` assumes that there is no importance matrix, and some levels choose
    # other types with one; only the dry run accepts one.
    if not has_imatrix:
        functions = _policy_functions()
        if functions is not None:
            return types_from_library(metadata, tensors, level, functions), "library"
    return types_from_dry_run(metadata, tensors, level, has_imatrix=has_imatrix), "dry_run"


def _policy_functions() -> dict[str, Any] | None:
    """The functions of src/llama-ext.h, or None if the build does not export them."""
    from llama_cpp import llama_cpp

    library = llama_cpp._lib
    if not all(hasattr(library, symbol) for symbol in _SYMBOLS.values()):
        return None
    functions = {name: getattr(library, symbol) for name, symbol in _SYMBOLS.items()}
    pointer = ctypes.c_void_p
    functions["init"].restype, functions["init"].argtypes = pointer, [pointer, pointer]
    functions["free"].restype, functions["free"].argtypes = None, [pointer]
    functions["compute"].restype = None
    functions["compute"].argtypes = [pointer, ctypes.c_int, pointer, pointer, ctypes.c_size_t]
    return functions


def types_from_library(
    metadata: GgufMetadata,
    tensors: Sequence[GgufTensor],
    level: GgufLevel,
    functions: dict[str, Any] | None = None,
) -> list[int]:
    """The types that llama.cpp's policy chooses for `tensors` without an importance matrix.

    The model is loaded without allocating its tensors, so that the policy sees its real
    hyper-parameters; llama.cpp detects missing or misshapen tensors while loading.
    """
    import llama_cpp

    functions = functions or _policy_functions()
    assert functions is not None
    parameters = llama_cpp.llama_model_default_params()
    parameters.no_alloc = True
    parameters.load_mode = llama_cpp.LLAMA_LOAD_MODE_NONE
    parameters.n_gpu_layers = 0
    with ggml.captured_log() as log:
        llama_cpp.llama_backend_init()
        model = llama_cpp.llama_model_load_from_file(str(metadata.path).encode(), parameters)
        if not model:
            raise _unsupported(log)
        try:
            quantize_parameters = llama_cpp.llama_model_quantize_default_params()
            quantize_parameters.ftype = level.ftype
            state = functions["init"](model, ctypes.byref(quantize_parameters))
            pointers = (ggml.TensorPointer * len(tensors))(*(tensor.pointer for tensor in tensors))
            types = (ctypes.c_int * len(tensors))()
            functions["compute"](state, level.ftype, pointers, types, len(tensors))
            functions["free"](state)
        finally:
            llama_cpp.llama_model_free(model)
    return list(types)


def types_from_dry_run(
    metadata: GgufMetadata, tensors: Sequence[GgufTensor], level: GgufLevel, *, has_imatrix: bool
) -> list[int]:
    """The types of `tensors`, from the log of a dry run of `llama_model_quantize`."""
    import llama_cpp

    parameters = llama_cpp.llama_model_quantize_default_params()
    parameters.ftype = level.ftype
    parameters.nthread = 1
    parameters.dry_run = True
    if has_imatrix:
        # The decision depends on the presence of importances, not on their values.
        values = (ctypes.c_float * 1)(1.0)
        entries = (llama_cpp.llama_model_imatrix_data * 2)()
        entries[0].name, entries[0].data, entries[0].size = b"any", values, 1
        parameters.imatrix = entries
    with ggml.captured_log() as log:
        failed = llama_cpp.llama_model_quantize(
            str(metadata.path).encode(), b"", ctypes.byref(parameters)
        )
    if failed:
        raise _unsupported(log)
    new_types = {
        match["name"]: ggml.type_of_name((match["new"] or match["old"]).upper())
        for match in _DRY_RUN_LINE.finditer("".join(log))
    }
    try:
        return [new_types[tensor.name] for tensor in tensors]
    except KeyError as error:
        raise InputError(
            "llama.cpp's dry run did not report the type of every tensor.",
            f"Its log does not mention {error}.",
            "Install the pinned llama-cpp-python, whose log format is supported.",
        ) from error


def _unsupported(log: Sequence[str]) -> InputError:
    architecture = _UNKNOWN_ARCHITECTURE.search("".join(log))
    if architecture:
        return InputError(
            f"The architecture {architecture[1]} is not supported.",
            ggml.reported_error(log),
            "Use a model of a supported architecture.",
        )
    return InputError(
        "llama.cpp does not support this model.",
        ggml.reported_error(log),
        "Check that the model's files are intact.",
    )
