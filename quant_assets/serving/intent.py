"""One quantization intent for all backends, translated or refused.

`method: int4` is what a user writes; `to_backend_params` translates it for a backend and a GPU, and
refuses what they cannot do with the reason and the nearest combination that they can. A backend is
a module of this folder, an entry in `BACKENDS` and its name in `Backend`.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Final, Literal

from pydantic import model_validator

from quant_assets.gpus.registry import Gpu
from quant_assets.models.stored_quantization import FLOAT, detect_quantization
from quant_assets.serving.backend import (
    BackendParams,
    Intent,
    Method,
    ServingBackend,
    impossible,
)
from quant_assets.serving.llamacpp import LlamaCpp
from quant_assets.serving.pytorch import PyTorch
from quant_assets.serving.tensorrt import TensorRtLlm
from quant_assets.serving.vllm import Vllm

Backend = Literal["pytorch", "vllm", "tensorrt", "llamacpp"]
BACKENDS: Final[Mapping[str, ServingBackend]] = {
    backend.name: backend for backend in (PyTorch(), Vllm(), TensorRtLlm(), LlamaCpp())
}

_METHODS: Final[Mapping[str, tuple[Method, ...]]] = {
    name: methods for backend in BACKENDS.values() for name, methods in backend.methods.items()
}


class UnifiedQuantizationConfig(Intent):
    """An intent whose `backend_method` belongs to some backend and fits `method`."""

    @model_validator(mode="after")
    def _known_backend_method(self) -> "UnifiedQuantizationConfig":
        if self.backend_method is None:
            return self
        methods = _METHODS.get(self.backend_method)
        if methods is None:
            raise ValueError(
                f"no backend has a method {self.backend_method!r}; known: {', '.join(_METHODS)}"
            )
        if self.method not in (*methods, "auto"):
            raise ValueError(
                f"{self.backend_method} does {' or '.join(methods)}, not {self.method}"
            )
        return self

    def to_backend_params(
        self, backend: Backend, gpu: Gpu | None = None, model: Path | None = None
    ) -> BackendParams:
        """The parameters of `backend`, on `gpu` where one is given.

        `auto` takes the method from the files of `model`; without a model it quantizes nothing.
        Raises `InputError` for what the backend or the GPU cannot do.
        """
        engine = BACKENDS[backend]
        answer = self._translate(engine, gpu, model)
        if model is not None:
            engine.check_range(answer, gpu, model)
        return answer

    def _translate(
        self, engine: ServingBackend, gpu: Gpu | None, model: Path | None
    ) -> BackendParams:
        name = str(model) if model else "MODEL"
        if gpu is not None and not engine.supports(gpu):
            raise impossible(
                f"{engine.name} does not run quantized models on {gpu.canonical_name}.",
                f"Its quantized kernels are for {engine.gpus}.",
                "the backend llamacpp, which runs GGUF on it",
            )
        if self.method == "auto":
            stored = detect_quantization(model) if model else FLOAT
            if stored.format != "float":
                return engine.load(stored, gpu, name)
            return self.model_copy(update={"method": "none"})._translate(engine, gpu, model)
        if self.backend_method and self.backend_method not in engine.methods:
            raise impossible(
                f"{engine.name} has no method {self.backend_method!r}.",
                f"It has {', '.join(engine.methods)}.",
                f"leave backend_method out for {engine.name}",
            )
        return engine.quantize(self, gpu, name)
