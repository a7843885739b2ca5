"""The interface of a serving backend, and the refusals that backends share.

Which GPU generation runs what is from vLLM's table of supported hardware, TensorRT-LLM's support
matrix and the documentation of bitsandbytes.
"""

import shlex
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar, Final

from pydantic import BaseModel, ConfigDict

from quant_assets.errors import InputError
from quant_assets.formats.artifact_formats import checkpoint_dtype
from quant_assets.gpus.registry import Gpu
from quant_assets.models.hf_config import CONFIG_NAME, read_config
from quant_assets.models.quantization_intent import (
    BACKEND_METHODS,
    DEFAULT_SPLIT,
    Backend,
    BackendMethod,
    CalibrationConfig,
    Method,
    QuantizationIntent,
)
from quant_assets.models.stored_quantization import StoredQuantization

ParamValue = str | int | bool

PASCAL: Final = (6, 0)
VOLTA: Final = (7, 0)
TURING: Final = (7, 5)
AMPERE: Final = (8, 0)
ADA: Final = (8, 9)
"""CUDA compute capabilities."""


class BackendParams(BaseModel):
    """A backend's parameters, the line that launches it, and notes for the user.

    `calibrated` says whether the method measures activations on a text.
    """

    model_config = ConfigDict(frozen=True)

    backend: Backend
    method: Method
    params: dict[str, ParamValue]
    launch: str
    calibrated: bool = False
    notes: tuple[str, ...] = ()


class ServingBackend(ABC):
    """One engine that serves models.

    `activations` says which of its methods quantize activations; `gpus` describes the GPUs that its
    quantized kernels support.
    """

    name: ClassVar[Backend]
    activations: ClassVar[str]
    gpus: ClassVar[str] = "NVIDIA GPUs"

    @property
    def methods(self) -> Mapping[str, BackendMethod]:
        """Its methods, by its own names."""
        return BACKEND_METHODS[self.name]

    def supports(self, gpu: Gpu) -> bool:
        """Whether it runs quantized models on a GPU of this vendor and architecture."""
        return gpu.vendor == "NVIDIA"

    def forms(self, intent: QuantizationIntent, gpu: Gpu | None) -> frozenset[bool]:
        """The values of `weight_only` that it can honour; none for a method that it lacks."""
        del gpu
        names = [intent.backend_method] if intent.backend_method else list(self.methods)
        return frozenset(form for name in names for form in self.methods[name].forms(intent.method))

    def stored_forms(self, stored: StoredQuantization, gpu: Gpu | None) -> frozenset[bool]:
        """The same for a model that is already quantized."""
        del gpu
        quantized = stored.format == "fp8" or (
            stored.format == "bitsandbytes" and stored.method == "int8"
        )
        return frozenset({not quantized})

    @abstractmethod
    def quantize(self, intent: QuantizationIntent, gpu: Gpu | None, model: str) -> BackendParams:
        """The parameters that quantize a 16-bit model; `intent.method` is not `auto`.

        Raises `InputError` for what the backend or the GPU cannot do; so does `load`.
        """

    @abstractmethod
    def load(
        self,
        stored: StoredQuantization,
        intent: QuantizationIntent,
        gpu: Gpu | None,
        model: str,
    ) -> BackendParams:
        """The parameters that load a model which is already quantized."""

    def check_range(self, answer: BackendParams, gpu: Gpu | None, model: Path) -> None:
        """Raise `InputError` where `answer` computes in float16 what exceeds it.

        Backends that convert activations themselves have nothing to check.
        """
        del answer, gpu, model


def impossible(what: str, why: str, nearest: str) -> InputError:
    """The refusal of a combination, naming the nearest possible one."""
    return InputError(what, why, f"Nearest possible alternative: {nearest}.")


def require_training_split(backend: str, calibration: CalibrationConfig) -> None:
    """Raise `InputError` for a split that `backend` would not read."""
    if calibration.split != DEFAULT_SPLIT:
        raise impossible(
            f"{backend} cannot calibrate on the split {calibration.split!r}.",
            f"Its calibration reads the split {DEFAULT_SPLIT!r} of a data set.",
            f"the split {DEFAULT_SPLIT!r}, or a file with the texts of {calibration.split!r}",
        )


def split_revision(model: str) -> tuple[str, str | None]:
    """A hub id `owner/name@revision` as its two parts; any other model has no revision."""
    name, separator, revision = model.partition("@")
    is_hub_id = separator and name.count("/") == 1 and not name.startswith((".", "~", "/"))
    return (name, revision) if is_hub_id else (model, None)


def artifact_command(
    model: str, family: str, bits: int | None, calibration: CalibrationConfig | None
) -> str:
    """The command that makes the GPTQ or AWQ artifact, calibrated as the user asked."""
    command = f"quant-assets quantize {shlex.quote(model)} --to {family} --bits {bits}"
    if calibration is None:
        return command
    options = {
        "calibration": calibration.dataset,
        "calibration-samples": calibration.num_samples,
        "sequence-length": calibration.max_length,
    }
    return command + "".join(
        f" --{name} {shlex.quote(str(value))}"
        for name, value in options.items()
        if value is not None
    )


def compute_capability(gpu: Gpu | None) -> tuple[int, int] | None:
    """CUDA compute capability; None without a GPU and for GPUs of other vendors."""
    if gpu is None or gpu.compute_capability is None:
        return None
    major, minor = gpu.compute_capability.split(".")
    return int(major), int(minor)


def require_capability(gpu: Gpu | None, least: tuple[int, int], what: str, nearest: str) -> None:
    """Raise `InputError` for an NVIDIA GPU below the compute capability `least`."""
    capability = compute_capability(gpu)
    if gpu is not None and capability is not None and capability < least:
        raise impossible(
            f"{what} does not run on {gpu.canonical_name}.",
            f"It needs compute capability {least[0]}.{least[1]}; this GPU has "
            f"{gpu.compute_capability} ({gpu.architecture}).",
            nearest,
        )


def require_bfloat16(backend: str, gpu: Gpu | None, model: Path) -> str | None:
    """The architecture of a `model` whose activations exceed float16; None for any other.

    Raises `InputError` for a GPU without bfloat16; see `checkpoint_dtype`.
    """
    if not (model / CONFIG_NAME).is_file():
        return None
    architecture = str(read_config(model).get("model_type", ""))
    if checkpoint_dtype(architecture) == "float16":
        return None
    require_capability(
        gpu,
        AMPERE,
        f"{backend} with {architecture} in bfloat16 (its activations exceed float16)",
        "the backend llamacpp, or a GPU of the Ampere generation or newer",
    )
    return architecture
