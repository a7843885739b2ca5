"""Worker: a GPTQ or AWQ folder to one with plain 16-bit weights, one tensor at a time."""

import json
import shutil
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from quant_assets.atomic_files import write_text_atomically
from quant_assets.formats.artifact_formats import checkpoint_dtype
from quant_assets.formats.group_quantization import PACKED_PARTS
from quant_assets.formats.safetensors_header import tensors_of_folder
from quant_assets.models.hf_config import CONFIG_NAME, read_config
from quant_assets.models.inspection import inspect_model
from quant_assets.models.stored_quantization import (
    GroupwiseConfig,
    groupwise_config,
    without_quantization,
)
from quant_assets.processes.protocol import EventChannel, serve
from quant_assets.quantize.conversion.plain_weights import UnpackJob, UnpackResult
from quant_assets.quantize.groupwise.layout import check_layout
from quant_assets.workers.checkpoint.assembly import copy_companions, join_safetensors
from quant_assets.workers.checkpoint.packing import unpack_awq, unpack_columns, unpack_rows

_RESTORE, _ASSEMBLE = "restore", "assemble"


def unpack(job: UnpackJob, channel: EventChannel) -> UnpackResult:
    """Restore every matrix to the values that inference computes with, and copy the rest."""
    channel.plan_steps({_RESTORE: 80, _ASSEMBLE: 20})
    quantization = groupwise_config(job.source)
    check_layout(job.source)
    dtype = checkpoint_dtype(inspect_model(job.source).architecture)
    job.output.mkdir(parents=True)
    work = job.output / "work"
    work.mkdir()
    names = {name: path for name, (path, _) in tensors_of_folder(job.source).items()}
    matrices = {name.removesuffix(".qweight") for name in names if name.endswith(".qweight")}
    plain = [name for name in names if _is_other(name)]
    outputs = sorted([*plain, *(f"{name}.weight" for name in matrices)])
    parts = []
    for number, name in enumerate(outputs):
        channel.progress(_RESTORE, number, len(outputs), "tensors")
        base = name.removesuffix(".weight")
        if base in matrices:
            packed = {
                part: _read(names, f"{base}.{part}")
                for part in PACKED_PARTS
                if f"{base}.{part}" in names
            }
            tensor = _restored(packed, quantization).to(getattr(torch, dtype))
        else:
            tensor = _read(names, name)
        part_file = work / f"{number:06d}.safetensors"
        save_file({name: tensor.contiguous()}, part_file)
        parts.append(part_file)
    channel.progress(_RESTORE, len(outputs), len(outputs), "tensors")
    channel.progress(_ASSEMBLE, 0, 1, "steps")
    join_safetensors(parts, job.output)
    shutil.rmtree(work)
    copy_companions(job.source, job.output, dtype, {})
    _drop_quantization(job.output)
    channel.progress(_ASSEMBLE, 1, 1, "steps")
    memory = channel.memory_usage()
    return UnpackResult(
        bits=quantization.bits,
        n_matrices=len(matrices),
        dtype=dtype,
        peak_rss_bytes=memory.peak_rss_bytes,
        peak_own_bytes=memory.peak_own_bytes,
        quantization_job=channel.completed_job(memory),
    )


def _is_other(name: str) -> bool:
    """Whether a tensor is neither part of a packed matrix nor an activation's scales, which are ones."""
    return name.rsplit(".", 1)[1] not in PACKED_PARTS


def _read(names: dict[str, Path], name: str) -> torch.Tensor:
    with safe_open(names[name], framework="pt") as reader:
        tensor: torch.Tensor = reader.get_tensor(name)
    return tensor


def _restored(parts: dict[str, torch.Tensor], quantization: GroupwiseConfig) -> torch.Tensor:
    bits, scales = quantization.bits, parts["scales"].float()
    if quantization.method == "awq":
        integers, zeros = unpack_awq(parts["qweight"]), unpack_awq(parts["qzeros"])
        index = torch.arange(len(integers)) // quantization.group_size
    else:
        integers = unpack_rows(parts["qweight"], bits)
        zeros = (unpack_columns(parts["qzeros"], bits) + quantization.zero_points_offset) % 2**bits
        index = parts["g_idx"].long()
    return ((integers - zeros[index]) * scales[index]).t()


def _drop_quantization(folder: Path) -> None:
    config = without_quantization(read_config(folder))
    write_text_atomically(folder / CONFIG_NAME, json.dumps(config, indent=2))


if __name__ == "__main__":
    serve(UnpackJob, unpack)
