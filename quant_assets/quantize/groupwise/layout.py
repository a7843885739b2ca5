"""Check that a GPTQ or AWQ folder matches its configuration, tensor by tensor, from headers alone.

Layouts: GPTQ has `qweight` (inputs * bits / 32 x outputs), `qzeros` (groups x outputs * bits / 32),
`scales` (groups x outputs) and `g_idx` (inputs); AWQ's GEMM format has `qweight` (inputs x
outputs / 8), `qzeros` (groups x outputs / 8) and `scales`.
"""

from pathlib import Path

from quant_assets.errors import CheckFailed
from quant_assets.formats.group_quantization import PACKED_PARTS, PER_CHANNEL
from quant_assets.formats.safetensors_header import tensors_of_folder
from quant_assets.models.integrity import check_hf_folder
from quant_assets.models.stored_quantization import groupwise_config

_WORD = 32
_FLOATS = ("F16", "BF16")


def check_layout(folder: Path) -> int:
    """Check files, configuration and every packed tensor; returns the number of packed matrices.

    Raises `CheckFailed` for the first tensor that does not match the configuration, and
    `InputError` for files that are missing or damaged.
    """
    quantization = groupwise_config(folder)
    check_hf_folder(folder)
    tensors = {name: tensor for name, (_, tensor) in tensors_of_folder(folder).items()}
    bits, group_size = quantization.bits, quantization.group_size
    gptq = quantization.method == "gptq"
    names = [name.removesuffix(".qweight") for name in tensors if name.endswith(".qweight")]
    if not names:
        raise _failed(folder, "It has no packed tensors.")
    for name in names:
        parts = {
            part: tensors.get(f"{name}.{part}")
            for part in (PACKED_PARTS if gptq else PACKED_PARTS[:-1])
        }
        for part, tensor in parts.items():
            if tensor is None:
                raise _failed(folder, f"{name}.{part} is missing.")
        packed = tensors[f"{name}.qweight"]
        if len(packed.shape) != 2:
            raise _failed(folder, f"{name}.qweight has {len(packed.shape)} dimensions.")
        rows, columns = packed.shape
        inputs, outputs = (
            (rows * _WORD // bits, columns) if gptq else (rows, columns * _WORD // bits)
        )
        groups = 1 if group_size == PER_CHANNEL else -(-inputs // group_size)
        expected = {
            "qweight": (("I32",), [rows, columns]),
            "qzeros": (("I32",), [groups, outputs * bits // _WORD]),
            "scales": (_FLOATS, [groups, outputs]),
            "g_idx": (("I32",), [inputs]),
        }
        for part, tensor in parts.items():
            assert tensor is not None
            kinds, shape = expected[part]
            if tensor.dtype not in kinds or list(tensor.shape) != shape:
                raise _failed(
                    folder,
                    f"{name}.{part} is {tensor.dtype} {list(tensor.shape)}, not {shape}.",
                )
    return len(names)


def _failed(folder: Path, why: str) -> CheckFailed:
    return CheckFailed(
        f"The tensors in {folder} do not match its config.json.", why, "Rebuild the artifact."
    )
