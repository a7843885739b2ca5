"""Checks before a GPTQ or AWQ run: is the model supported, and do memory, disk and time suffice?"""

import psutil
import torch

from quant_assets.errors import InputError
from quant_assets.host.resources import (
    available_memory,
    check_disk,
    check_memory,
    check_output_folder,
)
from quant_assets.models.inspection import ModelShape, inspect_model
from quant_assets.models.integrity import check_hf_folder
from quant_assets.processes.protocol import EventChannel
from quant_assets.quantize.groupwise.job import GroupwiseJob, check_shape, memory_needed
from quant_assets.workers.groupwise.layer_quantizer import linears
from quant_assets.workers.groupwise.streaming import StreamedModel

_FLOAT_BYTES = 4
_UNPACKED_BYTES = 2  # scales, embeddings and norms have 16 bits
# Measured with two models of 100M weights on two cores; used for the time estimate only: operations
# per second, passes of all tokens through the model, and the search's own seconds per weight.
_CPU_FLOPS_PER_CORE = 4e10
_PASSES = {"gptq": 4.0, "awq": 15.0}
_CORE_SECONDS_PER_WEIGHT = 1.6e-6


def check_job(job: GroupwiseJob, channel: EventChannel) -> ModelShape:
    """Check the source and the resources of this machine; returns the shape of the model.

    Raises `InputError` for an unusable source, `ResourceError` for too little memory or disk.
    """
    check_hf_folder(job.source)
    shape = inspect_model(job.source)
    check_shape(shape, job.settings)
    check_output_folder(job.output)
    size = job.settings.calibration_size
    needed = memory_needed(shape, job.settings.format, size)
    channel.log(
        f"One layer at a time: needs about {needed / 1e9:.2f} GB of memory, "
        f"{available_memory() / 1e9:.2f} GB are available; {psutil.cpu_count()} cores.",
        "debug",
    )
    check_memory(needed)
    outer = (shape.n_parameters - shape.n_linear_parameters) * _UNPACKED_BYTES
    packed = int(shape.n_linear_parameters * job.settings.quantization.bits_per_weight() / 8)
    states = size.n_tokens * shape.hidden_size * _FLOAT_BYTES
    # Layer files and the joined file briefly coexist; so do two sets of hidden states.
    check_disk(job.output, 2 * (outer + packed) + 2 * states)
    return shape


def warn_of_cpu_time(job: GroupwiseJob, shape: ModelShape, channel: EventChannel) -> None:
    """Log the estimated duration of a run without a GPU."""
    tokens = job.settings.calibration_size.n_tokens
    work = 2.0 * shape.n_linear_parameters * tokens * _PASSES[job.settings.format]
    core_seconds = work / _CPU_FLOPS_PER_CORE + _CORE_SECONDS_PER_WEIGHT * shape.n_linear_parameters
    seconds = core_seconds / torch.get_num_threads()
    channel.log(
        f"Running without a GPU: on {torch.get_num_threads()} CPU threads this takes about "
        f"{max(1, round(seconds / 60))} min.",
        "warning",
    )


def check_linears(model: StreamedModel) -> None:
    """Raise `InputError` for a model with layers that have no linear modules to quantize."""
    without = [index for index, layer in enumerate(model.layers) if not linears(layer)]
    if without:
        raise InputError(
            f"Models of the architecture {model.config.model_type} are not quantized here.",
            f"Layer {without[0]} has no linear modules; it stores its matrices in another module "
            "type.",
            "Use --to gguf.",
        )
