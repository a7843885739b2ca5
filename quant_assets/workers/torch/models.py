"""Loading causal language models on torch: plain Hugging Face folders, GPTQ and AWQ checkpoints."""

import os
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from quant_assets.errors import EnvironmentNotReady, InputError
from quant_assets.formats.group_quantization import PER_CHANNEL
from quant_assets.host.devices import Device
from quant_assets.models.integrity import check_hf_folder
from quant_assets.models.linked_model import linked_model
from quant_assets.models.stored_quantization import groupwise_config
from quant_assets.processes.protocol import EventChannel
from quant_assets.workers.checkpoint.tensor_files import TensorFiles, renamed

_FUSED = "gate_up_proj"
_LIBRARIES = ("torch", "transformers", "gptqmodel")


def resolve_device(device: Device) -> str:
    """`cpu` or `cuda` for `auto`; raise `EnvironmentNotReady` if CUDA is unavailable."""
    available = torch.cuda.is_available()
    if device == "cuda" and not available:
        raise EnvironmentNotReady(
            "torch cannot use a GPU here.",
            "There is no CUDA device, or torch was installed without CUDA.",
            "Use the device cpu, or install a CUDA build of torch.",
        )
    return "cuda" if available and device != "cpu" else "cpu"


def report_vram(channel: EventChannel, device: str) -> None:
    """Have `channel` report torch's GPU memory in bytes; without a GPU it stays unmeasured."""
    if device == "cuda":
        channel.read_vram_with(
            lambda: (torch.cuda.memory_allocated(), torch.cuda.max_memory_allocated())
        )


def load_model(folder: str, artifact_format: str, device: str) -> Any:
    """The model of a checkpoint folder, ready for inference.

    Raises `InputError` for a damaged folder. Code inside a checkpoint never runs, and loaders see
    only the model's own files.
    """
    check_hf_folder(Path(folder))
    if artifact_format == "gptq":
        if holds_fused_matrices(Path(folder)):
            raise InputError(
                f"gptqmodel cannot load {folder}.",
                f"It expects {_FUSED} as separate matrices; the folder stores it fused, as transformers and "
                "vLLM do.",
                "Serve the folder with vLLM, or use `quant-assets convert` to make another format.",
            )
        # gptqmodel's loader requires at least two workers, even on a single core.
        os.environ.setdefault("GPTQMODEL_CPU_WORKERS", "2")
        if device == "cpu":
            # Compiling its kernels takes longer than it ever saves on a CPU.
            os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")
        from gptqmodel import BACKEND, GPTQModel

        quantization = groupwise_config(Path(folder))
        # The fused CPU kernel that gptqmodel 7.6.0 picks mishandles per-channel zero points.
        fused_is_wrong = quantization.group_size == PER_CHANNEL and not quantization.symmetric
        backend = BACKEND.TORCH if device == "cpu" and fused_is_wrong else BACKEND.AUTO
        with linked_model(Path(folder)) as links:
            model = GPTQModel.load(
                str(links), device=device, backend=backend, trust_remote_code=False
            ).model
        _load_renamed(model, folder)
    else:
        from transformers import AutoModelForCausalLM

        with linked_model(Path(folder)) as links:
            model = AutoModelForCausalLM.from_pretrained(
                links,
                dtype="auto",
                device_map=device,
                trust_remote_code=False,
                use_safetensors=True,
            )
    if device == "cpu" and any(
        type(module).__name__ == "TorchLinear" for module in model.modules()
    ):
        # This kernel multiplies in the model's dtype, and most CPUs have no fast half-precision
        # matmul: 78 s for 512 tokens of a 135M model, against 1.4 s in single precision.
        model = model.float()
    return model.eval()


def _load_renamed(model: Any, folder: str) -> None:
    """Load the parameters that transformers renames, which gptqmodel skips."""
    files = TensorFiles(Path(folder))
    parameters = dict(model.named_parameters())
    for name, stored in renamed(model, files.names).items():
        if name in parameters:
            parameters[name].data.copy_(files.read(stored))


def holds_fused_matrices(folder: Path) -> bool:
    """Whether a GPTQ folder has fused matrices that gptqmodel 7.6.0 loads as two (Phi 3, GLM 4)."""
    return any(name.endswith(f"{_FUSED}.qweight") for name in TensorFiles(folder).names)


def load_tokenizer(folder: str) -> Any:
    """The tokenizer of a checkpoint folder."""
    from transformers import AutoTokenizer

    with linked_model(Path(folder)) as links:
        return AutoTokenizer.from_pretrained(links, trust_remote_code=False)


def prepare_torch(threads: int) -> None:
    """Set the number of threads and disable autograd."""
    torch.set_num_threads(threads)
    torch.set_grad_enabled(False)


def library_versions() -> dict[str, str]:
    """Versions of the installed libraries that run the model."""
    found = {}
    for name in _LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
