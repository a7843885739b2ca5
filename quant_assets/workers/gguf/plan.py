"""What the output will be: the type of every tensor, its offset, and the file's exact size.

The types are llama.cpp's own decision. It is asked through the functions of src/llama-ext.h
(`library`), or, where they do not reach, through a dry run of `llama_model_quantize` on the
metadata alone (`dry_run`).
"""

import ctypes
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from math import prod
from typing import Any

from quant_assets.errors import InputError
from quant_assets.formats.gguf_levels import GgufLevel
from quant_assets.quantize.gguf.job import TensorGroup, TypePolicy
from quant_assets.workers.gguf import ggml
from quant_assets.workers.gguf.ggml import GgufMetadata, GgufTensor
from quant_assets.workers.gguf.imatrix_file import ImportanceMatrix

_QUANTIZATION_VERSION = 2  # GGML_QNT_VERSION
_SPLIT_KEYS = ("split.no", "split.count", "split.tensors.count")
_BLOCK = re.compile(r"^blk\.(\d+)\.")
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
# llama.cpp refuses these without an importance matrix, except for embeddings and output
# (`tensor_requires_imatrix` in src/llama-quant.cpp).
_TYPES_NEEDING_IMATRIX = {"IQ3_XXS", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ1_M", "IQ1_S"}
_EMBEDDINGS = {"token_embd.weight", "per_layer_token_embd.weight"}
_OUTPUT = "output.weight"


@dataclass(frozen=True)
class PlannedTensor:
    """One tensor of the output.

    `shape` is ggml's, row length first. `offset` is absolute; `n_bytes` is without padding.
    """

    name: str
    shape: tuple[int, ...]
    source_type: int
    target_type: int
    offset: int

    @property
    def row_elements(self) -> int:
        """Numbers in a row."""
        return self.shape[0]

    @property
    def n_rows(self) -> int:
        """Rows over all matrices (experts) of the tensor."""
        return prod(self.shape[1:])

    @property
    def rows_per_matrix(self) -> int:
        """Rows of one matrix; each matrix has its own row of importances."""
        return self.shape[1]

    @property
    def n_elements(self) -> int:
        """Numbers in the tensor."""
        return prod(self.shape)

    @cached_property
    def source_row_bytes(self) -> int:
        """Bytes of one row before the quantization."""
        return ggml.row_bytes(self.source_type, self.row_elements)

    @cached_property
    def target_row_bytes(self) -> int:
        """Bytes of one row in the output."""
        return ggml.row_bytes(self.target_type, self.row_elements)

    @property
    def n_bytes(self) -> int:
        """Bytes of the tensor in the output."""
        return self.target_row_bytes * self.n_rows

    @property
    def layer(self) -> str:
        """The unit of resuming that the tensor belongs to: a block, or the tensor itself."""
        block = _BLOCK.match(self.name)
        return block.group() if block else self.name

    @property
    def role(self) -> str:
        """The tensor's name without its block's number."""
        return _BLOCK.sub("blk.*.", self.name)


@dataclass(frozen=True)
class FilePlan:
    """The whole output: its header and its tensors in the order of the file."""

    header: bytes
    tensors: tuple[PlannedTensor, ...]
    file_bytes: int
    type_policy: TypePolicy

    @property
    def layers(self) -> list[list[PlannedTensor]]:
        """The tensors by layer, in the order of the file."""
        return [list(group) for _, group in groupby(self.tensors, key=lambda tensor: tensor.layer)]

    @property
    def n_parameters(self) -> int:
        """Numbers in all tensors."""
        return sum(tensor.n_elements for tensor in self.tensors)

    @property
    def bits_per_weight(self) -> float:
        """Bits of tensor data for each parameter."""
        return 8 * sum(tensor.n_bytes for tensor in self.tensors) / self.n_parameters

    @property
    def tensor_types(self) -> dict[str, int]:
        """How many tensors have each type."""
        names = sorted(ggml.type_name(tensor.target_type) for tensor in self.tensors)
        return {name: len(list(group)) for name, group in groupby(names)}

    @property
    def groups(self) -> list[TensorGroup]:
        """The tensors by role and type."""
        groups: dict[tuple[str, int], list[PlannedTensor]] = {}
        for tensor in self.tensors:
            groups.setdefault((tensor.role, tensor.target_type), []).append(tensor)
        return [
            TensorGroup(
                role=role,
                tensor_type=ggml.type_name(target_type),
                count=len(members),
                n_parameters=sum(tensor.n_elements for tensor in members),
                size_bytes=sum(tensor.n_bytes for tensor in members),
            )
            for (role, target_type), members in groups.items()
        ]


def make_plan(
    metadata: GgufMetadata, level: GgufLevel, imatrix: ImportanceMatrix | None
) -> FilePlan:
    """Plan the output for the GGUF that `metadata` describes.

    Raises `InputError` when llama.cpp does not support the model or the level needs importances
    that are not given.
    """
    tensors = sorted(metadata.tensors(), key=_file_order)
    types, policy = _decide_types(metadata, tensors, level, has_imatrix=imatrix is not None)
    _check_importances(tensors, types, level, imatrix)
    _refuse_requantizing(metadata, tensors, types)
    header, offsets = ggml.build_header(
        metadata,
        values={
            "general.quantization_version": _QUANTIZATION_VERSION,
            "general.file_type": level.ftype,
            **(imatrix.header_values if imatrix else {}),
        },
        removed_keys=_SPLIT_KEYS,
        tensors=list(zip(tensors, types, strict=True)),
    )
    planned = tuple(
        PlannedTensor(
            name=tensor.name,
            shape=tensor.shape,
            source_type=tensor.ggml_type,
            target_type=new_type,
            offset=offsets[tensor.name],
        )
        for tensor, new_type in zip(tensors, types, strict=True)
    )
    end = max(tensor.offset + tensor.n_bytes for tensor in planned)
    return FilePlan(header, planned, _padded(end), policy)


def _padded(size: int) -> int:
    alignment = 32  # GGUF_DEFAULT_ALIGNMENT: llama.cpp pads the last tensor, too
    return -(-size // alignment) * alignment


def _file_order(tensor: GgufTensor) -> tuple[int, str]:
    """llama.cpp's order (`weight_name_comparer`): outside the blocks first, then block by block."""
    block = _BLOCK.match(tensor.name)
    return (int(block.group(1)) if block else -1, tensor.name)


def _decide_types(
    metadata: GgufMetadata, tensors: Sequence[GgufTensor], level: GgufLevel, *, has_imatrix: bool
) -> tuple[list[int], TypePolicy]:
    # `llama_quant_compute_types` decides as if there were no importance matrix, and some levels
    # take other types with one; only the dry run can be told.
    if not has_imatrix:
        functions = _policy_functions()
        if functions is not None:
            return types_from_library(metadata, tensors, level, functions), "library"
    return types_from_dry_run(metadata, tensors, level, has_imatrix=has_imatrix), "dry_run"


def _policy_functions() -> dict[str, Any] | None:
    """The functions of src/llama-ext.h, or None for a build that does not export them."""
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
    """The types that llama.cpp's policy gives `tensors`, without an importance matrix.

    The model is loaded without its tensors' memory, so that the policy sees its real
    hyper-parameters; llama.cpp finds missing or misshapen tensors on the way.
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
    """The types that a dry run of `llama_model_quantize` reports in its log for `tensors`."""
    import llama_cpp

    parameters = llama_cpp.llama_model_quantize_default_params()
    parameters.ftype = level.ftype
    parameters.nthread = 1
    parameters.dry_run = True
    if has_imatrix:
        # The decision depends on whether there are importances, not on their values.
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
            "llama.cpp's dry run did not name the type of every tensor.",
            f"It says nothing of {error}.",
            "Install the pinned llama-cpp-python, whose log is understood.",
        ) from error


def _unsupported(log: Sequence[str]) -> InputError:
    lines = [line for line in "".join(log).splitlines() if "error" in line or "fail" in line]
    return InputError(
        "llama.cpp does not accept this model.",
        f"It said: {lines[0] if lines else 'nothing'}",
        "Check that the model's files are whole and that this llama.cpp supports its architecture.",
    )


def _check_importances(
    tensors: Sequence[GgufTensor],
    types: Sequence[int],
    level: GgufLevel,
    imatrix: ImportanceMatrix | None,
) -> None:
    for tensor, new_type in zip(tensors, types, strict=True):
        if new_type == tensor.ggml_type:
            continue
        values = imatrix.values(tensor.name) if imatrix is not None else None
        if values is not None and values.size != tensor.shape[0] * tensor.shape[2]:
            if tensor.name in _EMBEDDINGS:
                continue
            raise InputError(
                f"The importance matrix does not fit the tensor {tensor.name}.",
                f"It has {values.size} values where the tensor needs "
                f"{tensor.shape[0] * tensor.shape[2]}.",
                "Compute the importance matrix from this very model.",
            )
        if values is None and _needs_importances(tensor.name, ggml.type_name(new_type), level):
            raise InputError(
                f"There are no importances for the tensor {tensor.name}.",
                f"Its type at the level {level} is {ggml.type_name(new_type)}, which needs one.",
                "Give an importance matrix of this very model, computed on a longer text.",
            )


def _needs_importances(name: str, type_name: str, level: GgufLevel) -> bool:
    if name in _EMBEDDINGS or name == _OUTPUT:
        return False
    return type_name in _TYPES_NEEDING_IMATRIX or (type_name == "Q2_K" and level.name == "Q2_K_S")


def _refuse_requantizing(
    metadata: GgufMetadata, tensors: Sequence[GgufTensor], types: Sequence[int]
) -> None:
    for tensor, new_type in zip(tensors, types, strict=True):
        if new_type != tensor.ggml_type and tensor.ggml_type not in ggml.FLOAT_TYPES:
            raise InputError(
                f"The source {metadata.path.name} is quantized already.",
                f"Its tensor {tensor.name} is {ggml.type_name(tensor.ggml_type)}; quantizing it "
                "again would lose more than the level says.",
                "Use the model's original weights, or an F16, BF16 or F32 GGUF.",
            )
