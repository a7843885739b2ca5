"""Is a GPTQ or AWQ folder what its configuration says, tensor by tensor? Headers alone are read.

Layouts: GPTQ has `qweight` (inputs * bits / 32 x outputs), `qzeros` (groups x outputs * bits / 32),
`scales` (groups x outputs) and `g_idx` (inputs); AWQ's GEMM format has `qweight` (inputs x
outputs / 8), `qzeros` (groups x outputs / 8) and `scales`.
"""

import json
from pathlib import Path
from typing import Any

from quant_assets.errors import CheckFailed, InputError
from quant_assets.quantize.preflight import check_hf_folder, read_safetensors_header

_WORD = 32
_FLOATS = ("F16", "BF16")


def quantization_of(folder: Path) -> dict[str, Any]:
    """`quantization_config` of a folder; raises `InputError` when it has none of GPTQ or AWQ."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(
            f"The file {folder / 'config.json'} cannot be read.",
            f"{error}.",
            "Give the folder of a GPTQ or AWQ artifact.",
        ) from error
    found = config.get("quantization_config") if isinstance(config, dict) else None
    if not isinstance(found, dict) or found.get("quant_method") not in ("gptq", "awq"):
        raise InputError(
            f"{folder} is no GPTQ or AWQ folder.",
            "Its config.json has no quantization_config of either.",
            "Give the folder of a GPTQ or AWQ artifact.",
        )
    return found


def check_layout(folder: Path) -> int:
    """Check files, configuration and every packed tensor; the number of packed matrices.

    Raises `CheckFailed` for the first tensor that is not as the configuration says, and
    `InputError` for files that are missing or damaged.
    """
    quantization = quantization_of(folder)
    check_hf_folder(folder)
    tensors: dict[str, dict[str, Any]] = {}
    for path in sorted(folder.glob("*.safetensors")):
        tensors |= read_safetensors_header(path)
    bits, group_size = int(quantization["bits"]), int(quantization["group_size"])
    gptq = quantization["quant_method"] == "gptq"
    names = [name.removesuffix(".qweight") for name in tensors if name.endswith(".qweight")]
    if not names:
        raise _failed(folder, "It holds no packed tensor.")
    for name in names:
        parts = {
            part: tensors.get(f"{name}.{part}")
            for part in ("qweight", "qzeros", "scales", *(("g_idx",) if gptq else ()))
        }
        for part, description in parts.items():
            if description is None:
                raise _failed(folder, f"{name}.{part} is missing.")
        rows, columns = parts["qweight"]["shape"]  # type: ignore[index]
        inputs, outputs = (
            (rows * _WORD // bits, columns) if gptq else (rows, columns * _WORD // bits)
        )
        groups = 1 if group_size == -1 else -(-inputs // group_size)
        expected = {
            "qweight": ("I32", [rows, columns]),
            "qzeros": ("I32", [groups, outputs * bits // _WORD]),
            "scales": (_FLOATS, [groups, outputs]),
            "g_idx": ("I32", [inputs]),
        }
        for part, description in parts.items():
            assert description is not None
            kinds, shape = expected[part]
            if description["dtype"] not in kinds or description["shape"] != shape:
                raise _failed(
                    folder,
                    f"{name}.{part} is {description['dtype']} {description['shape']}, not {shape}.",
                )
    return len(names)


def _failed(folder: Path, why: str) -> CheckFailed:
    return CheckFailed(
        f"The tensors in {folder} are not as its config.json says.", why, "Make the artifact again."
    )
