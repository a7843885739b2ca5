"""The layer loop of the GPTQ and the AWQ worker.

Windows of calibration tokens go through the embeddings once; then each decoder layer is loaded,
quantized on its inputs, written, and its outputs become the next layer's inputs. Memory holds one
layer and the hidden states of all windows, whatever the model's size. Output head and embeddings
stay as they are.
"""

import importlib.metadata
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import psutil
import torch
import transformers
from safetensors.torch import save_file

from quant_assets.errors import EnvironmentNotReady, InputError
from quant_assets.formats.artifact_formats import CheckpointDtype, checkpoint_dtype
from quant_assets.formats.safetensors_header import SUFFIX
from quant_assets.host.resources import (
    available_memory,
    check_disk,
    check_memory,
    check_output_folder,
)
from quant_assets.models.inspection import ModelShape, inspect_model
from quant_assets.models.integrity import check_hf_folder
from quant_assets.models.linked_model import linked_model
from quant_assets.processes.protocol import EventChannel, resident_memory
from quant_assets.quantize.groupwise.job import GroupwiseJob, GroupwiseResult, check_shape
from quant_assets.workers.groupwise.assembly import (
    copy_companions,
    join_safetensors,
    packed_bytes,
    tensor_bytes,
    tensor_facts,
)
from quant_assets.workers.groupwise.calibration import calibration_windows
from quant_assets.workers.groupwise.checkpoint import Checkpoints
from quant_assets.workers.groupwise.streaming import LayerCall, StreamedModel

_FLOAT_BYTES = 4
_SIDE_BYTES = 2  # scales, embeddings and norms are 16 bits
_SCRATCH_BYTES = 800_000_000  # Python, torch and its libraries, measured
# A layer, its gradient-free statistics and the candidates of a search.
_LAYER_COPIES = 6
# As seen with two models of 100M weights on two cores, for the estimate of time alone: operations a
# second, passes of all tokens through the model, and the search's own seconds a weight.
_CPU_FLOPS_PER_CORE = 4e10
_PASSES = {"gptq": 4.0, "awq": 15.0}
_CORE_SECONDS_PER_WEIGHT = 1.6e-6


class LayerQuantizer(Protocol):
    """What a worker does with one layer."""

    def library_versions(self) -> dict[str, str]:
        """Versions of what decides the bytes."""

    def quantization_config(self) -> dict[str, Any]:
        """`quantization_config` of the artifact's config.json."""

    def quantize(
        self, layer: torch.nn.Module, states: torch.Tensor, call: LayerCall
    ) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        """(the layer's tensors by their names inside it, the next layer's inputs)."""


MakeQuantizer = Callable[[StreamedModel], LayerQuantizer]


def installed_versions(names: tuple[str, ...]) -> dict[str, str]:
    """Versions of installed distributions."""
    return {name: importlib.metadata.version(name) for name in names}


def linears(layer: torch.nn.Module) -> dict[str, torch.nn.Linear]:
    """The linear modules of a layer, by name."""
    return {
        name: module
        for name, module in layer.named_modules()
        if isinstance(module, torch.nn.Linear)
    }


def run(job: GroupwiseJob, channel: EventChannel, make_quantizer: MakeQuantizer) -> GroupwiseResult:
    """Do the job; see `quantize_groupwise` for what it raises."""
    started = time.monotonic()
    shape = _preflight(job, channel)
    device = _device(job)
    torch.set_num_threads(job.threads or torch.get_num_threads())
    torch.set_grad_enabled(False)
    transformers.logging.set_verbosity_error()
    # float32 everywhere: nothing overflows or is rounded before it is quantized, one layer is small,
    # and CPUs multiply it faster than 16-bit types. GPUs do so in TF32.
    torch.set_float32_matmul_precision("high")
    model = StreamedModel(job.source, device, torch.float32)
    _check_linears(model)
    quantizer = make_quantizer(model)
    if device == "cpu":
        _warn_of_time(job, shape, channel)
    checkpoints = Checkpoints(
        job.work, _identity(job, device, quantizer.library_versions()), resume=job.resume
    )
    for message in checkpoints.messages:
        channel.log(message, "warning")
    first = checkpoints.done
    n_layers = len(model.layers)
    dtype = checkpoint_dtype(shape.architecture)
    channel.progress("calibrate", 0, 1, "texts")
    windows = calibration_windows(
        _tokenizer(job.source), job.calibration, job.settings.samples,
        job.settings.sequence_length,
    )  # fmt: skip
    channel.progress("calibrate", 1, 1, "texts")
    layers_started = time.monotonic()
    if first < n_layers:
        states, calls = model.first_inputs(windows, only_calls=first > 0)
        if first:
            channel.log(f"Going on after {first} of {n_layers} layers.")
            states = checkpoints.states()
        for index in range(first, n_layers):
            channel.progress("quantize", index, n_layers, "layers")
            with model.layer(index) as layer:
                tensors, states = quantizer.quantize(layer, states, calls[index])
                prefix = model.layer_prefix(index)
                named = {
                    prefix + name: _stored(name, tensor, dtype).cpu()
                    for name, tensor in tensors.items()
                }
            checkpoints.save(index, named, states)
    channel.progress("quantize", n_layers, n_layers, "layers")
    layer_seconds = (time.monotonic() - layers_started) / max(1, n_layers - first)
    files = _assemble(job, model, quantizer, checkpoints, dtype)
    data_bytes, types = tensor_facts(job.output, files)
    expected = _expected_bytes(model, job)
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
        peak_rss_bytes=resident_memory()[1],
        peak_vram_bytes=torch.cuda.max_memory_allocated() if device == "cuda" else None,
    )


def _tokenizer(folder: Path) -> Any:
    try:
        with linked_model(folder) as links:
            return transformers.AutoTokenizer.from_pretrained(links, trust_remote_code=False)
    except Exception as error:  # transformers and tokenizers raise many kinds
        raise InputError(
            f"The tokenizer in {folder} cannot be loaded.",
            f"transformers {transformers.__version__} raised {type(error).__name__}: {error}.",
            "Put the tokenizer's files that belong to the model into the folder.",
        ) from error


def _stored(name: str, tensor: torch.Tensor, dtype: CheckpointDtype) -> torch.Tensor:
    if not tensor.is_floating_point():
        return tensor
    # The integers were chosen for scales of this precision.
    return tensor.to(torch.float16 if name.endswith(".scales") else getattr(torch, dtype))


def _device(job: GroupwiseJob) -> str:
    available = torch.cuda.is_available()
    if job.device == "cuda" and not available:
        raise EnvironmentNotReady(
            "torch cannot use a GPU here.",
            "There is no CUDA device, or torch was installed without CUDA.",
            "Use the device cpu, or install a CUDA build of torch.",
        )
    return "cuda" if available and job.device != "cpu" else "cpu"


def _preflight(job: GroupwiseJob, channel: EventChannel) -> ModelShape:
    check_hf_folder(job.source)
    shape = inspect_model(job.source)
    check_shape(shape, job.settings)
    check_output_folder(job.output)
    states = job.settings.samples * job.settings.sequence_length * shape.hidden_size * _FLOAT_BYTES
    layer = shape.n_linear_parameters // shape.n_layers * _FLOAT_BYTES
    embedding = shape.vocab_size * shape.hidden_size * _FLOAT_BYTES
    needed = _SCRATCH_BYTES + max(embedding, _LAYER_COPIES * layer) + 4 * states
    channel.log(
        f"One layer at a time: about {needed / 1e9:.2f} GB of memory are needed, "
        f"{available_memory() / 1e9:.2f} GB are available; {psutil.cpu_count()} cores.",
        "debug",
    )
    check_memory(needed)
    outer = (shape.n_parameters - shape.n_linear_parameters) * _SIDE_BYTES
    packed = int(shape.n_linear_parameters * job.settings.quantization.bits_per_weight() / 8)
    # Layer files and the joined file lie side by side for a moment; so do two sets of states.
    check_disk(job.output, 2 * (outer + packed) + 2 * states)
    return shape


def _warn_of_time(job: GroupwiseJob, shape: ModelShape, channel: EventChannel) -> None:
    tokens = job.settings.samples * job.settings.sequence_length
    work = 2.0 * shape.n_linear_parameters * tokens * _PASSES[job.settings.format]
    core_seconds = work / _CPU_FLOPS_PER_CORE + _CORE_SECONDS_PER_WEIGHT * shape.n_linear_parameters
    seconds = core_seconds / torch.get_num_threads()
    channel.log(
        f"No GPU is used; on {torch.get_num_threads()} CPU threads this takes about "
        f"{max(1, round(seconds / 60))} min.",
        "warning",
    )


def _check_linears(model: StreamedModel) -> None:
    without = [index for index, layer in enumerate(model.layers) if not linears(layer)]
    if without:
        raise InputError(
            f"Models of the architecture {model.config.model_type} are not quantized here.",
            f"Layer {without[0]} has no linear modules; it multiplies in another way.",
            "Use --to gguf.",
        )


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
    """What the tensors must take: packed matrices by the format's arithmetic, the rest as it is."""
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
            total += tensor_bytes(shape, _SIDE_BYTES)
    return total


def _assemble(
    job: GroupwiseJob,
    model: StreamedModel,
    quantizer: LayerQuantizer,
    checkpoints: Checkpoints,
    dtype: CheckpointDtype,
) -> list[str]:
    parts: list[Path] = []
    for number, name in enumerate(model.outer_names()):
        path = job.work / f"outer-{number:05d}{SUFFIX}"
        save_file({name: _stored(name, model.files.read(name), dtype).contiguous()}, path)
        parts.append(path)
    parts += [checkpoints.layer_file(index) for index in range(len(model.layers))]
    for stale in job.output.glob(f"*{SUFFIX}"):
        stale.unlink()
    names = join_safetensors(parts, job.output)
    names += copy_companions(job.source, job.output, dtype, quantizer.quantization_config())
    return sorted(names)
