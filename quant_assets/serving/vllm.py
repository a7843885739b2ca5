"""vLLM: which of its quantized kernels serves an intent on a GPU."""

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar, Final

from quant_assets.gpus.registry import Gpu
from quant_assets.models.quantization_intent import Backend, Method, QuantizationIntent
from quant_assets.models.stored_quantization import StoredQuantization
from quant_assets.serving.backend import (
    ADA,
    AMPERE,
    TURING,
    VOLTA,
    BackendParams,
    ParamValue,
    ServingBackend,
    artifact_command,
    compute_capability,
    impossible,
    require_bfloat16,
    require_capability,
    require_training_split,
    split_revision,
)

_FP8_AMD: Final = frozenset({"CDNA 3", "CDNA 4"})
_MARLIN_BITS: Final = (4, 8)


class Vllm(ServingBackend):
    """`vllm serve` and its options."""

    name: ClassVar[Backend] = "vllm"
    activations: ClassVar[str] = (
        "Its GPTQ, AWQ and 4-bit bitsandbytes kernels keep activations at 16 bits. fp8 quantizes them "
        "on GPUs with fp8 units (Ada, Hopper, CDNA 3 and later) and keeps them on Turing and Ampere."
    )
    gpus: ClassVar[str] = "NVIDIA GPUs and AMD Instinct"

    def supports(self, gpu: Gpu) -> bool:
        """NVIDIA, and AMD's CDNA architectures."""
        return super().supports(gpu) or (
            gpu.vendor == "AMD" and gpu.architecture.startswith("CDNA")
        )

    def forms(self, intent: QuantizationIntent, gpu: Gpu | None) -> frozenset[bool]:
        """Of fp8, the form of the GPU."""
        if intent.method == "fp8":
            return frozenset({_fp8_is_weight_only(gpu)})
        return super().forms(intent, gpu)

    def stored_forms(self, stored: StoredQuantization, gpu: Gpu | None) -> frozenset[bool]:
        """Of fp8, the form of the GPU."""
        if stored.format == "fp8":
            return frozenset({_fp8_is_weight_only(gpu)})
        return super().stored_forms(stored, gpu)

    def quantize(self, intent: QuantizationIntent, gpu: Gpu | None, model: str) -> BackendParams:
        """A GPTQ or AWQ artifact for integers; fp8 and bitsandbytes quantize while loading."""
        require_capability(gpu, VOLTA, "vLLM", "the backend llamacpp")
        kernel = intent.backend_method or _default_kernel(intent.method, gpu)
        notes: list[str] = []
        calibrated = kernel is not None and kernel.startswith(("awq", "gptq"))
        if kernel is not None and calibrated:
            if intent.calibration is not None:
                require_training_split("GPTQ or AWQ for vLLM", intent.calibration)
            command = artifact_command(
                model, kernel.removesuffix("_marlin"), intent.bits, intent.calibration
            )
            notes.append(f"Serve an artifact in that format: {command}")
        _check_kernel(kernel, gpu, weight_only=intent.stated_weight_only is True)
        return self._params(kernel, intent.method, model, notes).model_copy(
            update={"calibrated": calibrated}
        )

    def load(
        self,
        stored: StoredQuantization,
        intent: QuantizationIntent,
        gpu: Gpu | None,
        model: str,
    ) -> BackendParams:
        """The Marlin kernel of the checkpoint's format where GPU and bits allow it."""
        require_capability(gpu, VOLTA, "vLLM", "the backend llamacpp")
        kernel: str = intent.backend_method or stored.format
        marlin = _has_marlin(gpu) and stored.bits in _MARLIN_BITS
        if kernel in ("gptq", "awq") and marlin and intent.backend_method is None:
            kernel = f"{kernel}_marlin"
        if kernel != "gguf":
            _check_kernel(kernel, gpu, weight_only=intent.stated_weight_only is True)
        return self._params(kernel, stored.method, model)

    def check_range(self, answer: BackendParams, gpu: Gpu | None, model: Path) -> None:
        """The plain AWQ kernel multiplies in float16 on every GPU."""
        architecture = require_bfloat16(answer.backend, gpu, model)
        if architecture is not None and answer.params.get("dtype") == "float16":
            raise impossible(
                f"vLLM's awq kernel cannot run {architecture} correctly.",
                "It multiplies in float16 only, which the model's activations exceed.",
                "the kernel awq_marlin, on a GPU of the Ampere generation or newer (--gpu)",
            )

    def _params(
        self, kernel: str | None, method: Method, model: str, notes: Sequence[str] = ()
    ) -> BackendParams:
        params: dict[str, ParamValue] = {}
        if kernel:
            params["quantization"] = kernel
            # vLLM's plain AWQ kernel multiplies in float16 only.
            params["dtype"] = "float16" if kernel == "awq" else "auto"
        name, revision = split_revision(model)
        pinned = f" --revision {shlex.quote(revision)}" if revision else ""
        options = "".join(f" --{key} {value}" for key, value in params.items())
        return BackendParams(
            backend=self.name,
            method=method,
            params=params,
            launch=f"vllm serve {shlex.quote(name)}{pinned}{options}",
            notes=tuple(notes),
        )


def _has_marlin(gpu: Gpu | None) -> bool:
    capability = compute_capability(gpu)
    return capability is not None and capability >= AMPERE


def _default_kernel(method: Method, gpu: Gpu | None) -> str | None:
    if method == "none":
        return None
    if method == "fp8":
        return "fp8"
    capability = compute_capability(gpu)
    without_awq = (gpu is not None and gpu.vendor == "AMD") or (
        capability is not None and capability < TURING
    )
    family = "gptq" if method == "int8" or without_awq else "awq"
    return f"{family}_marlin" if _has_marlin(gpu) else family


def _fp8_is_weight_only(gpu: Gpu | None) -> bool:
    """Whether fp8 keeps activations at 16 bits: on NVIDIA GPUs without fp8 units, through Marlin."""
    capability = compute_capability(gpu)
    return capability is not None and capability < ADA


def _check_kernel(kernel: str | None, gpu: Gpu | None, *, weight_only: bool) -> None:
    """Raise `InputError` for a kernel that `gpu` does not run; `weight_only` was asked for."""
    if kernel is None or gpu is None:
        return
    if gpu.vendor == "AMD":
        if kernel == "fp8" and gpu.architecture not in _FP8_AMD:
            raise impossible(
                f"vLLM has no fp8 on {gpu.canonical_name}.",
                f"{gpu.architecture} has no fp8 units; CDNA 3 and later have.",
                "int8 or int4 on vllm, through GPTQ",
            )
        if kernel not in ("gptq", "fp8"):
            raise impossible(
                f"vLLM has no {kernel} on {gpu.canonical_name}.",
                "Its AWQ, Marlin and bitsandbytes kernels are for NVIDIA GPUs.",
                "the backend_method gptq",
            )
    if kernel == "fp8" and weight_only:
        require_capability(gpu, TURING, "Weight-only fp8 on vLLM", "int8 on vllm, through GPTQ")
    elif kernel == "fp8":
        require_capability(gpu, ADA, "fp8 on vLLM", "int8 on vllm, through GPTQ with 8 bits")
    elif kernel.endswith("_marlin"):
        plain = kernel.removesuffix("_marlin")
        require_capability(gpu, AMPERE, f"vLLM's {kernel} kernel", f"the backend_method {plain}")
    elif kernel == "awq":
        require_capability(gpu, TURING, "vLLM's awq kernel", "the backend_method gptq")
