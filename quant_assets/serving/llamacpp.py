"""llama.cpp: the GGUF level that serves an intent, and `llama-server`."""

import shlex
from collections.abc import Mapping
from typing import ClassVar, Final

from quant_assets.gpus.registry import Gpu
from quant_assets.models.stored_quantization import StoredQuantization
from quant_assets.serving.backend import (
    BackendParams,
    Intent,
    Method,
    ServingBackend,
    impossible,
)

_ALL_LAYERS: Final = 999
"""More than any model has: llama.cpp puts every layer on the GPU."""
_DEFAULT_LEVELS: Final[Mapping[Method, str]] = {"none": "F16", "int8": "Q8_0", "int4": "Q4_K_M"}


class LlamaCpp(ServingBackend):
    """`llama-server` and its options."""

    name: ClassVar[str] = "llamacpp"
    methods: ClassVar[Mapping[str, tuple[Method, ...]]] = {
        "Q8_0": ("int8",),
        "Q6_K": ("int8",),
        "Q5_K_M": ("int4",),
        "Q4_K_M": ("int4",),
        "Q4_0": ("int4",),
    }

    def supports(self, gpu: Gpu) -> bool:
        """Every GPU: CUDA, HIP, Metal, SYCL or Vulkan."""
        del gpu
        return True

    def quantize(self, intent: Intent, gpu: Gpu | None, model: str) -> BackendParams:
        """A GGUF level, which `quant-assets quantize` makes."""
        if intent.method == "fp8":
            raise impossible(
                "llama.cpp has no fp8.",
                "GGUF holds integers in blocks and 16-bit or 32-bit floats.",
                "int8 on llamacpp (Q8_0)",
            )
        level = intent.backend_method or _DEFAULT_LEVELS[intent.method]
        layers = _gpu_layers(gpu)
        return BackendParams(
            backend=self.name,
            method=intent.method,
            params={"level": level, "n_gpu_layers": layers},
            launch=_launch(f"{shlex.quote(model)}-{level}.gguf", layers),
            notes=(f"Make the file first: quant-assets quantize MODEL --to gguf --level {level}.",),
        )

    def load(self, stored: StoredQuantization, gpu: Gpu | None, model: str) -> BackendParams:
        """A GGUF file as it is; other formats are converted first."""
        if stored.format != "gguf":
            raise impossible(
                f"llama.cpp does not load {model}.",
                f"Its format is {stored.format}; llama.cpp loads GGUF.",
                f"quant-assets convert {shlex.quote(model)} --to gguf",
            )
        layers = _gpu_layers(gpu)
        return BackendParams(
            backend=self.name,
            method=stored.method,
            params={"n_gpu_layers": layers},
            launch=_launch(shlex.quote(model), layers),
        )


def _gpu_layers(gpu: Gpu | None) -> int:
    return 0 if gpu is None else _ALL_LAYERS


def _launch(quoted_model: str, layers: int) -> str:
    return f"llama-server --model {quoted_model} --host 127.0.0.1 --n-gpu-layers {layers}"
