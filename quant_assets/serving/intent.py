"""One quantization intent for all backends: what a user asks for, and what each backend is told.

`method: int4` is what a user writes; `to_backend_params` translates it for a backend and a GPU, and
refuses what they cannot do with the reason and the nearest pair that they can. Which GPU
generation runs what is from vLLM's table of supported hardware, TensorRT-LLM's support matrix and
the documentation of bitsandbytes.
"""

import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Final, Literal

from pydantic import BaseModel, ConfigDict, model_validator

from quant_assets.errors import InputError
from quant_assets.formats.artifact_formats import checkpoint_dtype
from quant_assets.gpus.registry import Gpu
from quant_assets.models.hf_config import CONFIG_NAME, read_config
from quant_assets.models.stored_quantization import FLOAT, StoredQuantization, detect_quantization

Method = Literal["none", "int8", "int4", "fp8", "auto"]
Backend = Literal["pytorch", "vllm", "tensorrt", "llamacpp"]
ParamValue = str | int | bool

VOLTA: Final = (7, 0)
TURING: Final = (7, 5)
AMPERE: Final = (8, 0)
ADA: Final = (8, 9)
_PASCAL: Final = (6, 0)
_FP8_AMD: Final = frozenset({"CDNA 3", "CDNA 4"})
_BITS: Final[dict[Method, int]] = {"none": 16, "int8": 8, "int4": 4, "fp8": 8, "auto": 16}
_BACKEND_METHODS: Final[dict[Backend, tuple[str, ...]]] = {
    "pytorch": ("bitsandbytes",),
    "vllm": ("awq", "awq_marlin", "gptq", "gptq_marlin", "fp8", "bitsandbytes"),
    "tensorrt": ("fp8", "int8_sq", "int8_wo", "int4_awq", "int4_wo", "w4a8_awq"),
    "llamacpp": ("Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "Q4_0"),
}
_METHOD_OF: Final[dict[str, tuple[Method, ...]]] = {
    "bitsandbytes": ("int8", "int4"), "awq": ("int4",), "awq_marlin": ("int4",),
    "gptq": ("int8", "int4"), "gptq_marlin": ("int8", "int4"), "fp8": ("fp8",),
    "int8_sq": ("int8",), "int8_wo": ("int8",), "int4_awq": ("int4",), "int4_wo": ("int4",),
    "w4a8_awq": ("int4",), "Q8_0": ("int8",), "Q6_K": ("int8",), "Q5_K_M": ("int4",),
    "Q4_K_M": ("int4",), "Q4_0": ("int4",),
}  # fmt: skip


class BackendParams(BaseModel):
    """What a backend is told: its parameters, the line that launches it, and what to know."""

    model_config = ConfigDict(frozen=True)

    backend: Backend
    method: Method
    params: dict[str, ParamValue]
    launch: str
    notes: tuple[str, ...] = ()


class UnifiedQuantizationConfig(BaseModel):
    """What a user wants, whatever runs it.

    `weight_only` keeps activations in 16 bits. `calibration` names a text for methods that measure
    activations. `backend_method` is the backend's own name for a method, where the default is not
    wanted.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    method: Method = "none"
    weight_only: bool = True
    calibration: str | None = None
    backend_method: str | None = None

    @model_validator(mode="after")
    def _known_backend_method(self) -> "UnifiedQuantizationConfig":
        if self.backend_method is None:
            return self
        methods = _METHOD_OF.get(self.backend_method)
        if methods is None:
            raise ValueError(
                f"no backend has a method {self.backend_method!r}; known: {', '.join(_METHOD_OF)}"
            )
        if self.method not in (*methods, "auto"):
            raise ValueError(
                f"{self.backend_method} does {' or '.join(methods)}, not {self.method}"
            )
        return self

    @property
    def enabled(self) -> bool:
        """Whether anything is quantized."""
        return self.method != "none"

    @property
    def bits(self) -> int:
        """Nominal bits of a weight; 16 without quantization, and for `auto` before detection."""
        return _BITS[self.method]

    def to_backend_params(
        self, backend: Backend, gpu: Gpu | None = None, model: Path | None = None
    ) -> BackendParams:
        """The parameters of `backend`, on `gpu` where one is given.

        `auto` takes the method from the files of `model`; without a model it quantizes nothing.
        Raises `InputError` for what the backend or the GPU cannot do.
        """
        answer = self._translated(backend, gpu, model)
        if model is not None:
            _check_range(answer, gpu, model)
        return answer

    def _translated(self, backend: Backend, gpu: Gpu | None, model: Path | None) -> BackendParams:
        name = str(model) if model else "MODEL"
        _require_known_gpu(backend, gpu)
        if self.method == "auto":
            stored = detect_quantization(model) if model else FLOAT
            if stored.format != "float":
                return _STORED[backend](stored, gpu, name)
            return self.model_copy(update={"method": "none"})._translated(backend, gpu, model)
        if self.backend_method and self.backend_method not in _BACKEND_METHODS[backend]:
            raise _impossible(
                f"{backend} has no method {self.backend_method!r}.",
                f"It has {', '.join(_BACKEND_METHODS[backend])}.",
                f"leave backend_method out for {backend}",
            )
        return _TRANSLATIONS[backend](self, gpu, name)


def _impossible(what: str, why: str, nearest: str) -> InputError:
    return InputError(what, why, f"The nearest that is possible: {nearest}.")


def _require_known_gpu(backend: Backend, gpu: Gpu | None) -> None:
    if gpu is None or backend == "llamacpp" or gpu.vendor == "NVIDIA":
        return
    if backend == "vllm" and gpu.vendor == "AMD" and gpu.architecture.startswith("CDNA"):
        return
    raise _impossible(
        f"{backend} does not quantize on {gpu.canonical_name}.",
        f"Its quantized kernels here are for NVIDIA GPUs{_ALSO_AMD.get(backend, '')}.",
        "the backend llamacpp, which runs GGUF on it",
    )


_ALSO_AMD: Final = {"vllm": " and AMD Instinct"}


def _capability(gpu: Gpu | None) -> tuple[int, int] | None:
    """CUDA compute capability; None where no GPU, or none of NVIDIA's, is given."""
    if gpu is None or gpu.compute_capability is None:
        return None
    major, minor = gpu.compute_capability.split(".")
    return int(major), int(minor)


def _require(gpu: Gpu | None, least: tuple[int, int], what: str, nearest: str) -> None:
    """Refuse an NVIDIA GPU below a compute capability."""
    capability = _capability(gpu)
    if gpu is not None and capability is not None and capability < least:
        raise _impossible(
            f"{what} does not run on {gpu.canonical_name}.",
            f"It needs compute capability {least[0]}.{least[1]}; this GPU has "
            f"{gpu.compute_capability} ({gpu.architecture}).",
            nearest,
        )


def _check_range(answer: BackendParams, gpu: Gpu | None, model: Path) -> None:
    """Refuse to compute in float16 what exceeds it; see `checkpoint_dtype`."""
    if answer.backend not in ("pytorch", "vllm"):
        return
    if not (model / CONFIG_NAME).is_file():
        return
    architecture = str(read_config(model).get("model_type", ""))
    if checkpoint_dtype(architecture) == "float16":
        return
    _require(
        gpu,
        AMPERE,
        f"{answer.backend} with {architecture} in bfloat16 (its activations exceed float16)",
        "the backend llamacpp, or a GPU of the Ampere generation or newer",
    )
    if answer.params.get("dtype") == "float16":
        raise _impossible(
            f"vLLM's awq kernel cannot compute {architecture} right.",
            "It multiplies in float16 only, which the model's activations exceed.",
            "the kernel awq_marlin, which a GPU of the Ampere generation or newer has (--gpu)",
        )


def _pytorch(config: UnifiedQuantizationConfig, gpu: Gpu | None, model: str) -> BackendParams:
    capability = _capability(gpu)
    dtype = "float16" if capability is not None and capability < AMPERE else "bfloat16"
    if config.method == "fp8":
        raise _impossible(
            "PyTorch has no fp8 here.",
            "bitsandbytes, through which models are quantized at loading, has 8 and 4 bit integers.",
            "int8 on pytorch, or fp8 on vllm with an Ada, Hopper or newer GPU",
        )
    params: dict[str, ParamValue] = {}
    if config.method == "int8":
        _require(gpu, TURING, "bitsandbytes with 8 bits", "int4 on pytorch, or int8 on llamacpp")
        params = {"load_in_8bit": True}
    elif config.method == "int4":
        _require(gpu, _PASCAL, "bitsandbytes with 4 bits", "int4 on llamacpp")
        params = {
            "load_in_4bit": True,
            "bnb_4bit_quant_type": "nf4",
            "bnb_4bit_use_double_quant": True,
            "bnb_4bit_compute_dtype": dtype,
        }
    arguments = ", ".join(f"{key}={value!r}" for key, value in params.items())
    quantization = f", quantization_config=BitsAndBytesConfig({arguments})" if params else ""
    notes = [] if not params else ["bitsandbytes quantizes while loading; nothing is calibrated."]
    if params and not config.weight_only and config.method == "int4":
        notes.append("Activations stay in 16 bits: bitsandbytes has no 4 bit activations.")
    return BackendParams(
        backend="pytorch",
        method=config.method,
        params={**params, "torch_dtype": dtype},
        launch=f"AutoModelForCausalLM.from_pretrained({model!r}, dtype={dtype!r}{quantization})",
        notes=tuple(notes),
    )


def _vllm(config: UnifiedQuantizationConfig, gpu: Gpu | None, model: str) -> BackendParams:
    _require(gpu, VOLTA, "vLLM", "the backend llamacpp")
    name = config.backend_method or _vllm_method(config.method, gpu)
    notes: list[str] = []
    if name in ("awq", "awq_marlin", "gptq", "gptq_marlin"):
        bits = config.bits
        family = name.removesuffix("_marlin")
        notes.append(
            f"Serve an artifact of that format: quant-assets quantize MODEL --to {family} "
            f"--bits {bits}."
        )
    _check_vllm(name, gpu)
    return _vllm_params(name, config.method, model, notes)


def _vllm_params(
    name: str | None, method: Method, model: str, notes: list[str] | None = None
) -> BackendParams:
    params: dict[str, ParamValue] = {}
    if name:
        params["quantization"] = name
        # vLLM's AWQ kernels multiply in float16 only.
        params["dtype"] = "float16" if name == "awq" else "auto"
    options = "".join(f" --{key} {value}" for key, value in params.items())
    return BackendParams(
        backend="vllm",
        method=method,
        params=params,
        launch=f"vllm serve {shlex.quote(model)}{options}",
        notes=tuple(notes or ()),
    )


def _vllm_method(method: Method, gpu: Gpu | None) -> str | None:
    if method == "none":
        return None
    if method == "fp8":
        return "fp8"
    capability = _capability(gpu)
    marlin = capability is not None and capability >= AMPERE
    without_awq = (gpu is not None and gpu.vendor == "AMD") or (
        capability is not None and capability < TURING
    )
    family = "gptq" if method == "int8" or without_awq else "awq"
    return f"{family}_marlin" if marlin else family


def _check_vllm(name: str | None, gpu: Gpu | None) -> None:
    if name is None or gpu is None:
        return
    if gpu.vendor == "AMD":
        if name == "fp8" and gpu.architecture not in _FP8_AMD:
            raise _impossible(
                f"vLLM has no fp8 on {gpu.canonical_name}.",
                f"{gpu.architecture} has no fp8 units; CDNA 3 and later have.",
                "int8 or int4 on vllm, through GPTQ",
            )
        if name not in ("gptq", "fp8"):
            raise _impossible(
                f"vLLM has no {name} on {gpu.canonical_name}.",
                "Its AWQ, Marlin and bitsandbytes kernels are for NVIDIA GPUs.",
                "the backend_method gptq",
            )
    if name == "fp8":
        _require(gpu, ADA, "fp8 on vLLM", "int8 on vllm, through GPTQ with 8 bits")
    elif name.endswith("_marlin"):
        plain = name.removesuffix("_marlin")
        _require(gpu, AMPERE, f"vLLM's {name} kernel", f"the backend_method {plain}")
    elif name == "awq":
        _require(gpu, TURING, "vLLM's awq kernel", "the backend_method gptq")


def _tensorrt(config: UnifiedQuantizationConfig, gpu: Gpu | None, model: str) -> BackendParams:
    _require(gpu, AMPERE, "TensorRT-LLM", "the backend llamacpp")
    defaults = {
        "none": "full_prec",
        "fp8": "fp8",
        "int8": "int8_wo" if config.weight_only else "int8_sq",
        "int4": "int4_awq" if config.weight_only else "w4a8_awq",
    }
    qformat = config.backend_method or defaults[config.method]
    if qformat in ("fp8", "w4a8_awq"):
        nearest = "int8 on tensorrt" if qformat == "fp8" else "int4 with weight_only on tensorrt"
        _require(gpu, ADA, f"TensorRT-LLM's {qformat}", nearest)
    params: dict[str, ParamValue] = {"qformat": qformat}
    notes = []
    if qformat not in ("full_prec", "int8_wo", "int4_wo"):
        params["calib_dataset"] = config.calibration or "cnn_dailymail"
        params["calib_size"] = 512
        notes.append(f"Calibrated on {params['calib_dataset']}; text like your own is better.")
    options = "".join(f" --{key} {shlex.quote(str(value))}" for key, value in params.items())
    return BackendParams(
        backend="tensorrt",
        method=config.method,
        params=params,
        launch=(
            f"python quantize.py --model_dir {shlex.quote(model)}{options} --output_dir checkpoint "
            "&& trtllm-build --checkpoint_dir checkpoint --output_dir engine"
        ),
        notes=tuple(notes),
    )


def _llamacpp(config: UnifiedQuantizationConfig, gpu: Gpu | None, model: str) -> BackendParams:
    if config.method == "fp8":
        raise _impossible(
            "llama.cpp has no fp8.",
            "GGUF holds integers in blocks and 16 or 32 bit floats.",
            "int8 on llamacpp (Q8_0)",
        )
    level = (
        config.backend_method or {"none": "F16", "int8": "Q8_0", "int4": "Q4_K_M"}[config.method]
    )
    layers = 0 if gpu is None else 999
    return BackendParams(
        backend="llamacpp",
        method=config.method,
        params={"level": level, "n_gpu_layers": layers},
        launch=f"llama-server --model {shlex.quote(model)}-{level}.gguf --host 127.0.0.1 "
        f"--n-gpu-layers {layers}",
        notes=(f"Make the file first: quant-assets quantize MODEL --to gguf --level {level}.",),
    )


def _stored_pytorch(stored: StoredQuantization, gpu: Gpu | None, model: str) -> BackendParams:
    if stored.format == "fp8":
        _require(
            gpu, ADA, "An fp8 checkpoint on PyTorch", "the model's 16 bit checkpoint with int8"
        )
    folder, gguf_file = model, ""
    params: dict[str, ParamValue] = {"torch_dtype": "auto"}
    if stored.format == "gguf":
        folder, gguf_file = str(Path(model).parent), Path(model).name
        params["gguf_file"] = gguf_file
    option = f", gguf_file={gguf_file!r}" if gguf_file else ""
    return BackendParams(
        backend="pytorch",
        method=stored.method,
        params=params,
        launch=f"AutoModelForCausalLM.from_pretrained({folder!r}, dtype='auto'{option})",
        notes=(f"The checkpoint is {stored.format} and carries its own quantization.",),
    )


def _stored_vllm(stored: StoredQuantization, gpu: Gpu | None, model: str) -> BackendParams:
    _require(gpu, VOLTA, "vLLM", "the backend llamacpp")
    capability = _capability(gpu)
    name: str = stored.format
    # The Marlin kernels take 4 and 8 bits.
    marlin = capability is not None and capability >= AMPERE and stored.bits in (4, 8)
    if name in ("gptq", "awq") and marlin:
        name = f"{name}_marlin"
    if name != "gguf":
        _check_vllm(name, gpu)
    return _vllm_params(name, stored.method, model)


def _stored_tensorrt(stored: StoredQuantization, gpu: Gpu | None, model: str) -> BackendParams:
    del gpu
    raise _impossible(
        f"TensorRT-LLM does not build an engine from {model} here.",
        f"It is a {stored.format} checkpoint; engines are built from 16 bit weights.",
        f"{stored.method} on tensorrt with the model's 16 bit checkpoint",
    )


def _stored_llamacpp(stored: StoredQuantization, gpu: Gpu | None, model: str) -> BackendParams:
    if stored.format != "gguf":
        raise _impossible(
            f"llama.cpp does not load {model}.",
            f"It is a {stored.format} checkpoint; llama.cpp loads GGUF.",
            f"quant-assets convert {shlex.quote(model)} --to gguf",
        )
    layers = 0 if gpu is None else 999
    return BackendParams(
        backend="llamacpp",
        method=stored.method,
        params={"n_gpu_layers": layers},
        launch=f"llama-server --model {shlex.quote(model)} --host 127.0.0.1 "
        f"--n-gpu-layers {layers}",
    )


_Translate = Callable[[UnifiedQuantizationConfig, Gpu | None, str], BackendParams]
_TranslateStored = Callable[[StoredQuantization, Gpu | None, str], BackendParams]
_TRANSLATIONS: Final[dict[Backend, _Translate]] = {
    "pytorch": _pytorch,
    "vllm": _vllm,
    "tensorrt": _tensorrt,
    "llamacpp": _llamacpp,
}
_STORED: Final[dict[Backend, _TranslateStored]] = {
    "pytorch": _stored_pytorch,
    "vllm": _stored_vllm,
    "tensorrt": _stored_tensorrt,
    "llamacpp": _stored_llamacpp,
}
