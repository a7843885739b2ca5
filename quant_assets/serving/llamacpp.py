"""llama.cpp: the GGUF level that serves an intent, and `llama-server`."""

import shlex
from pathlib import Path, PurePath
from typing import ClassVar, Final

from quant_assets.gpus.registry import Gpu
from quant_assets.models.quantization_intent import (
    HUB_PREFIX,
    Backend,
    CalibrationConfig,
    QuantizationIntent,
    gguf_level,
)
from quant_assets.models.stored_quantization import StoredQuantization
from quant_assets.serving.backend import (
    BackendParams,
    ServingBackend,
    impossible,
    split_revision,
)

_ALL_LAYERS: Final = 999
"""More than any model has: llama.cpp puts every layer on the GPU."""
_WITHOUT_IMATRIX: Final = frozenset({"F16", "Q8_0"})
"""Levels whose quantizer takes no importance matrix."""
_CHUNK_TOKENS: Final = 512
_TEXT_SUFFIXES: Final = frozenset({"", ".txt", ".md", ".raw"})


class LlamaCpp(ServingBackend):
    """`llama-server` and its options."""

    name: ClassVar[Backend] = "llamacpp"
    activations: ClassVar[str] = (
        "A GGUF level describes weights; nothing in the file or the options quantizes activations."
    )

    def supports(self, gpu: Gpu) -> bool:
        """Every GPU: CUDA, HIP, Metal, SYCL or Vulkan."""
        del gpu
        return True

    def quantize(self, intent: QuantizationIntent, gpu: Gpu | None, model: str) -> BackendParams:
        """A GGUF level, which `quant-assets quantize` makes."""
        level = gguf_level(intent)
        if level is None:
            raise impossible(
                f"llama.cpp has no {intent.method}.",
                "GGUF holds integers in blocks and 16-bit or 32-bit floats.",
                "int8 on llamacpp (Q8_0)",
            )
        layers = _gpu_layers(gpu)
        quoted, imatrix = shlex.quote(model), ""
        notes = []
        if (
            level not in _WITHOUT_IMATRIX
            and intent.calibration is not None
            and _is_plain_text(intent.calibration)
        ):
            imatrix = f" --imatrix {shlex.quote(f'{_stem(model)}.imatrix.gguf')}"
            notes += _imatrix_notes(quoted, intent.calibration)
        notes.append(
            f"Make the file first: quant-assets quantize {quoted} --to gguf --level {level}{imatrix}"
        )
        if intent.stated_weight_only and intent.enabled:
            notes.append(
                "Some kernels round activations to 8 bits per block inside a product; no option "
                "turns that off."
            )
        return BackendParams(
            backend=self.name,
            method=intent.method,
            params={"level": level, "n_gpu_layers": layers},
            launch=_launch(shlex.quote(f"{_stem(model)}-{level}.gguf"), layers),
            calibrated=bool(imatrix),
            notes=tuple(notes),
        )

    def load(
        self,
        stored: StoredQuantization,
        intent: QuantizationIntent,
        gpu: Gpu | None,
        model: str,
    ) -> BackendParams:
        """A GGUF file as it is; other formats are converted first."""
        del intent
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


def _stem(model: str) -> str:
    """The name that `quant-assets quantize` gives the files of a model."""
    name = PurePath(split_revision(model)[0]).name
    return name.removesuffix(".gguf")


def _is_plain_text(calibration: CalibrationConfig) -> bool:
    """Whether `quant-assets imatrix` reads it: a text file, or the default text."""
    dataset = calibration.dataset
    return dataset is None or (
        not dataset.startswith(HUB_PREFIX) and Path(dataset).suffix in _TEXT_SUFFIXES
    )


def _imatrix_notes(quoted_model: str, calibration: CalibrationConfig) -> list[str]:
    text = "" if calibration.dataset is None else f" --text {shlex.quote(calibration.dataset)}"
    chunks = "" if calibration.num_samples is None else f" --chunks {calibration.num_samples}"
    notes = [f"Measure the importance matrix: quant-assets imatrix {quoted_model}{text}{chunks}"]
    if calibration.max_length not in (None, _CHUNK_TOKENS):
        notes.append(
            f"max_length is not used: the importance matrix is measured in chunks of {_CHUNK_TOKENS} "
            "tokens."
        )
    return notes


def _gpu_layers(gpu: Gpu | None) -> int:
    return 0 if gpu is None else _ALL_LAYERS


def _launch(quoted_model: str, layers: int) -> str:
    return f"llama-server --model {quoted_model} --host 127.0.0.1 --n-gpu-layers {layers}"
