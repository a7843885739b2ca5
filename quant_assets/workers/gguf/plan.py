"""The plan of an output file: its header, the type and offset of every tensor, its exact size.

Types are llama.cpp's own decision (`type_policy`); order, padding and key-values follow
`llama_model_quantize` (src/llama-quant.cpp).
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from math import prod

from quant_assets.errors import InputError
from quant_assets.formats.gguf_levels import GgufLevel
from quant_assets.quantize.gguf.job import TensorGroup, TypePolicy
from quant_assets.workers.gguf import ggml
from quant_assets.workers.gguf.ggml import GgufMetadata, GgufTensor
from quant_assets.workers.gguf.imatrix_file import ImatrixFile
from quant_assets.workers.gguf.type_policy import decide_types

_QUANTIZATION_VERSION = 2  # GGML_QNT_VERSION
_SPLIT_KEYS = ("split.no", "split.count", "split.tensors.count")
_BLOCK = re.compile(r"^blk\.(\d+)\.")
# llama.cpp rejects these without an importance matrix, except for embeddings and output
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
        """Elements per row."""
        return self.shape[0]

    @property
    def n_rows(self) -> int:
        """Rows over all matrices (experts) of the tensor."""
        return prod(self.shape[1:])

    @property
    def rows_per_matrix(self) -> int:
        """Rows per matrix; each matrix has its own row of importances."""
        return self.shape[1]

    @property
    def n_elements(self) -> int:
        """Elements of the tensor."""
        return prod(self.shape)

    @cached_property
    def source_row_bytes(self) -> int:
        """Bytes per row in the source."""
        return ggml.row_bytes(self.source_type, self.row_elements)

    @cached_property
    def target_row_bytes(self) -> int:
        """Bytes per row in the output."""
        return ggml.row_bytes(self.target_type, self.row_elements)

    @property
    def n_bytes(self) -> int:
        """Bytes of the tensor in the output."""
        return self.target_row_bytes * self.n_rows

    @property
    def layer(self) -> str:
        """The resume unit that the tensor belongs to: its block, or the tensor itself."""
        block = _BLOCK.match(self.name)
        return block.group() if block else self.name

    @property
    def role(self) -> str:
        """The tensor's name without its block number."""
        return _BLOCK.sub("blk.*.", self.name)


@dataclass(frozen=True)
class FilePlan:
    """The output file: its header, and its tensors in file order."""

    header: bytes
    tensors: tuple[PlannedTensor, ...]
    file_bytes: int
    type_policy: TypePolicy

    @property
    def layers(self) -> list[list[PlannedTensor]]:
        """The tensors by layer, in file order."""
        return [list(group) for _, group in groupby(self.tensors, key=lambda tensor: tensor.layer)]

    @property
    def n_parameters(self) -> int:
        """Elements of all tensors."""
        return sum(tensor.n_elements for tensor in self.tensors)

    @property
    def bits_per_weight(self) -> float:
        """Bits of tensor data per parameter."""
        return 8 * sum(tensor.n_bytes for tensor in self.tensors) / self.n_parameters

    @property
    def tensor_types(self) -> dict[str, int]:
        """Number of tensors per type."""
        names = sorted(ggml.type_name(tensor.target_type) for tensor in self.tensors)
        return {name: len(list(group)) for name, group in groupby(names)}

    @property
    def groups(self) -> list[TensorGroup]:
        """The tensors grouped by role and type."""
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


def make_plan(metadata: GgufMetadata, level: GgufLevel, imatrix: ImatrixFile | None) -> FilePlan:
    """Plan the output for the GGUF that `metadata` describes.

    Raises `InputError` if llama.cpp does not support the model, or if the level needs importances
    that are missing.
    """
    tensors = sorted(metadata.tensors(), key=_file_order)
    types, policy = decide_types(metadata, tensors, level, has_imatrix=imatrix is not None)
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
    alignment = 32  # GGUF_DEFAULT_ALIGNMENT: llama.cpp pads the last tensor as well
    return -(-size // alignment) * alignment


def _file_order(tensor: GgufTensor) -> tuple[int, str]:
    """llama.cpp's order (`weight_name_comparer`): tensors outside blocks first, then by block."""
    block = _BLOCK.match(tensor.name)
    return (int(block.group(1)) if block else -1, tensor.name)


def _check_importances(
    tensors: Sequence[GgufTensor],
    types: Sequence[int],
    level: GgufLevel,
    imatrix: ImatrixFile | None,
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
                "Make one of this same model with `quant-assets imatrix MODEL`.",
            )
        if values is None and _needs_importances(tensor.name, ggml.type_name(new_type), level):
            raise InputError(
                f"There are no importances for the tensor {tensor.name}.",
                f"Its type at the level {level} is {ggml.type_name(new_type)}, which needs them.",
                "Make one of this same model on a longer text with `quant-assets imatrix MODEL "
                "--text FILE`.",
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
                f"The source {metadata.path.name} is already quantized.",
                f"Its tensor {tensor.name} is {ggml.type_name(tensor.ggml_type)}; quantizing it "
                "again would lose more quality than the level implies.",
                "Use the model's original weights, or an F16, BF16 or F32 GGUF.",
            )
