"""The layer loop of GPTQ and AWQ: quantize a model while holding one decoder layer in memory.

1. Calibration windows pass through the embeddings once and become the first layer's inputs.
2. Each layer is loaded, quantized on its inputs and saved; its outputs are the next layer's inputs.
3. The saved layers, and embeddings and output head unquantized, are joined into a model folder.

Life cycle: `run` checks the job, opens the work folder, resumes after its last finished layer, and
saves a layer and its outputs together, so that a killed run loses at most one layer. Memory holds
one layer and the hidden states of all windows, regardless of model size. GPTQ (arXiv:2210.17323)
and AWQ (arXiv:2306.00978) both proceed layer by layer.
"""

import time
from collections.abc import Mapping
from math import prod
from pathlib import Path

import torch
import transformers
from safetensors.torch import save_file

from quant_assets.formats.artifact_formats import CheckpointDtype, checkpoint_dtype
from quant_assets.formats.safetensors_header import SUFFIX
from quant_assets.processes.protocol import EventChannel
from quant_assets.quantize.groupwise.job import GroupwiseJob, GroupwiseResult
from quant_assets.workers.checkpoint.assembly import (
    copy_companions,
    join_safetensors,
    tensor_facts,
)
from quant_assets.workers.checkpoint.packing import packed_bytes
from quant_assets.workers.groupwise.calibration import calibration_windows, source_tokenizer
from quant_assets.workers.groupwise.layer_quantizer import LayerQuantizer, MakeQuantizer, linears
from quant_assets.workers.groupwise.preflight import check_job, check_linears, warn_of_cpu_time
from quant_assets.workers.groupwise.steps import ASSEMBLE, CALIBRATE, QUANTIZE
from quant_assets.workers.groupwise.streaming import StreamedModel
from quant_assets.workers.groupwise.work_folder import WorkFolder
from quant_assets.workers.torch.models import report_vram, resolve_device

_UNPACKED_BYTES = 2  # embeddings and norms have 16 bits


def run(job: GroupwiseJob, channel: EventChannel, make_quantizer: MakeQuantizer) -> GroupwiseResult:
    """Run the job; raises what `quantize_groupwise` documents."""
    started = time.monotonic()
    shape = check_job(job, channel)
    device = resolve_device(job.device)
    report_vram(channel, device)
    torch.set_num_threads(job.threads or torch.get_num_threads())
    torch.set_grad_enabled(False)
    transformers.logging.set_verbosity_error()
    # float32 everywhere: no overflow and no rounding before quantization, a single layer is small,
    # and CPUs multiply it faster than 16-bit types. GPUs use TF32.
    torch.set_float32_matmul_precision("high")
    model = StreamedModel(job.source, device, torch.float32)
    check_linears(model)
    quantizer = make_quantizer(model)
    if device == "cpu":
        warn_of_cpu_time(job, shape, channel)
    work_folder = WorkFolder(
        job.work, _identity(job, device, quantizer.library_versions()), resume=job.resume
    )
    for message in work_folder.messages:
        channel.log(message, "warning")
    first = work_folder.done
    n_layers = len(model.layers)
    dtype = checkpoint_dtype(shape.architecture)
    channel.progress(CALIBRATE, 0, 1, "texts")
    windows = calibration_windows(
        source_tokenizer(job.source), job.calibration, job.settings.samples,
        job.settings.sequence_length,
    )  # fmt: skip
    channel.progress(CALIBRATE, 1, 1, "texts")
    layers_started = time.monotonic()
    if first < n_layers:
        states, calls = model.first_inputs(windows, only_calls=first > 0)
        if first:
            channel.log(f"Resuming after {first} of {n_layers} layers.")
            states = work_folder.states()
        for index in range(first, n_layers):
            channel.progress(QUANTIZE, index, n_layers, "layers")
            with model.layer(index) as layer:
                tensors, states = quantizer.quantize(layer, states, calls[index])
                prefix = model.layer_prefix(index)
                named = {
                    prefix + name: _stored(name, tensor, dtype).cpu()
                    for name, tensor in tensors.items()
                }
            work_folder.save(index, named, states)
    channel.progress(QUANTIZE, n_layers, n_layers, "layers")
    layer_seconds = (time.monotonic() - layers_started) / max(1, n_layers - first)
    channel.progress(ASSEMBLE, 0, 1, "steps")
    files = _assemble(job, model, quantizer, work_folder, dtype)
    data_bytes, types = tensor_facts(job.output, files)
    expected = _expected_bytes(model, job)
    channel.progress(ASSEMBLE, 1, 1, "steps")
    memory = channel.memory_usage()
    return GroupwiseResult(
        files=files,
        bytes=data_bytes,
        expected_bytes=expected,
        architecture=shape.architecture,
        n_parameters=shape.n_parameters,
        n_layers=n_layers,
        bits_per_weight=8 * data_bytes / shape.n_parameters,
        tensor_types=types,
        calibration_tokens=windows.numel(),
        device=device,
        library_versions=quantizer.library_versions(),
        seconds=time.monotonic() - started,
        seconds_per_layer=layer_seconds,
        resumed_from_layer=first or None,
        peak_rss_bytes=memory.peak_rss_bytes,
        peak_own_bytes=memory.peak_own_bytes,
        peak_vram_bytes=memory.peak_vram_bytes,
        quantization_job=channel.completed_job(memory),
    )


def _stored(name: str, tensor: torch.Tensor, dtype: CheckpointDtype) -> torch.Tensor:
    if not tensor.is_floating_point():
        return tensor
    # The integers were computed with scales of this precision.
    return tensor.to(torch.float16 if name.endswith(".scales") else getattr(torch, dtype))


def _identity(job: GroupwiseJob, device: str, versions: Mapping[str, str]) -> dict[str, str]:
    settings = {key: str(value) for key, value in job.settings.model_dump().items()}
    return {
        "source": job.source_identity,
        "calibration": job.calibration_identity,
        "device": device,
        **settings,
        **{f"{name}_version": version for name, version in versions.items()},
    }


def _expected_bytes(model: StreamedModel, job: GroupwiseJob) -> int:
    """Expected bytes of all tensors: packed matrices by the format's arithmetic, the rest unpacked."""
    total = 0
    packed = {
        f"{model.layer_prefix(index)}{name}.weight"
        for index, layer in enumerate(model.layers)
        for name in linears(layer)
    }
    for name in model.files.names:
        shape = model.files.shape(name)
        if name in packed:
            total += packed_bytes(
                shape[1], shape[0], job.settings.bits, job.settings.group_size,
                with_index=job.settings.format == "gptq",
            )  # fmt: skip
        else:
            total += prod(shape) * _UNPACKED_BYTES
    return total


def _assemble(
    job: GroupwiseJob,
    model: StreamedModel,
    quantizer: LayerQuantizer,
    work_folder: WorkFolder,
    dtype: CheckpointDtype,
) -> list[str]:
    parts: list[Path] = []
    for number, name in enumerate(model.outer_names()):
        path = job.work / f"outer-{number:05d}{SUFFIX}"
        save_file({name: _stored(name, model.files.read(name), dtype).contiguous()}, path)
        parts.append(path)
    parts += [work_folder.layer_file(index) for index in range(len(model.layers))]
    for stale in job.output.glob(f"*{SUFFIX}"):
        stale.unlink()
    names = join_safetensors(parts, job.output)
    names += copy_companions(job.source, job.output, dtype, quantizer.quantization_config())
    return sorted(names)
