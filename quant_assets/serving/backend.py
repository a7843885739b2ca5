"""The interface of a serving backend, and the refusals that backends share.

Which GPU generation runs what is from vLLM's table of supported hardware, TensorRT-LLM's support
matrix and the documentation of bitsandbytes.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar, Final, Literal

from pydantic import BaseModel, ConfigDict

from quant_assets.errors import InputError
from quant_assets.formats.artifact_formats import checkpoint_dtype
from quant_assets.gpus.registry import Gpu
from quant_assets.models.hf_config import CONFIG_NAME, read_config
from quant_assets.models.stored_quantization import StoredQuantization

Method = Literal["none", "int8", "int4", "fp8", "auto"]
ParamValue = str | int | bool

PASCAL: Final = (6, 0)
VOLTA: Final = (7, 0)
TURING: Final = (7, 5)
AMPERE: Final = (8, 0)
ADA: Final = (8, 9)
"""CUDA compute capabilities."""

_BITS: Final[Mapping[Method, int]] = {"none": 16, "int8": 8, "int4": 4, "fp8": 8, "auto": 16}


class Intent(BaseModel):
    """A user's wish, independent of the engine that serves the model.

    `weight_only` keeps activations in 16 bits. `calibration` names a text for methods that measure
    activations. `backend_method` is the backend's own name for a method, where the default is not
    wanted.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    method: Method = "none"
    weight_only: bool = True
    calibration: str | None = None
    backend_method: str | None = None

    @property
    def enabled(self) -> bool:
        """Whether anything is quantized."""
        return self.method != "none"

    @property
    def bits(self) -> int:
        """Nominal bits of a weight; 16 without quantization, and for `auto` before detection."""
        return _BITS[self.method]


class BackendParams(BaseModel):
    """A backend's parameters, the line that launches it, and notes for the user."""

    model_config = ConfigDict(frozen=True)

    backend: str
    method: Method
    params: dict[str, ParamValue]
    launch: str
    notes: tuple[str, ...] = ()


class ServingBackend(ABC):
    """One engine that serves models.

    `methods` maps its own names of methods to the intents that they fulfil; `gpus` describes the
    GPUs that its quantized kernels support.
    """

    name: ClassVar[str]
    methods: ClassVar[Mapping[str, tuple[Method, ...]]]
    gpus: ClassVar[str] = "NVIDIA GPUs"

    def supports(self, gpu: Gpu) -> bool:
        """Whether it runs quantized models on a GPU of this vendor and architecture."""
        return gpu.vendor == "NVIDIA"

    @abstractmethod
    def quantize(self, intent: Intent, gpu: Gpu | None, model: str) -> BackendParams:
        """The parameters that quantize a 16-bit model; `intent.method` is not `auto`.

        Raises `InputError` for what the backend or the GPU cannot do; so does `load`.
        """

    @abstractmethod
    def load(self, stored: StoredQuantization, gpu: Gpu | None, model: str) -> BackendParams:
        """The parameters that load a model which is already quantized."""

    def check_range(self, answer: BackendParams, gpu: Gpu | None, model: Path) -> None:
        """Raise `InputError` where `answer` computes in float16 what exceeds it.

        Backends that convert activations themselves have nothing to check.
        """
        del answer, gpu, model


def impossible(what: str, why: str, nearest: str) -> InputError:
    """The refusal of a combination, naming the nearest possible one."""
    return InputError(what, why, f"Nearest possible alternative: {nearest}.")


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
