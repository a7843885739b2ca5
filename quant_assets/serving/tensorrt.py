"""TensorRT-LLM: the format that its `quantize.py` calibrates and `trtllm-build` compiles."""

import shlex
from collections.abc import Mapping
from typing import ClassVar, Final

from quant_assets.gpus.registry import Gpu
from quant_assets.models.stored_quantization import StoredQuantization
from quant_assets.serving.backend import (
    ADA,
    AMPERE,
    BackendParams,
    Intent,
    Method,
    ParamValue,
    ServingBackend,
    impossible,
    require_capability,
)

_DEFAULT_CALIBRATION: Final = "cnn_dailymail"
_CALIBRATION_SAMPLES: Final = 512


class TensorRtLlm(ServingBackend):
    """`quantize.py` and `trtllm-build` of TensorRT-LLM."""

    name: ClassVar[str] = "tensorrt"
    methods: ClassVar[Mapping[str, tuple[Method, ...]]] = {
        "fp8": ("fp8",),
        "int8_sq": ("int8",),
        "int8_wo": ("int8",),
        "int4_awq": ("int4",),
        "int4_wo": ("int4",),
        "w4a8_awq": ("int4",),
    }

    def quantize(self, intent: Intent, gpu: Gpu | None, model: str) -> BackendParams:
        """`qformat`, with a calibration set for every format that measures activations."""
        require_capability(gpu, AMPERE, "TensorRT-LLM", "the backend llamacpp")
        defaults = {
            "none": "full_prec",
            "fp8": "fp8",
            "int8": "int8_wo" if intent.weight_only else "int8_sq",
            "int4": "int4_awq" if intent.weight_only else "w4a8_awq",
        }
        qformat = intent.backend_method or defaults[intent.method]
        if qformat in ("fp8", "w4a8_awq"):
            nearest = (
                "int8 on tensorrt" if qformat == "fp8" else "int4 with weight_only on tensorrt"
            )
            require_capability(gpu, ADA, f"TensorRT-LLM's {qformat}", nearest)
        params: dict[str, ParamValue] = {"qformat": qformat}
        notes = []
        if qformat not in ("full_prec", "int8_wo", "int4_wo"):
            params["calib_dataset"] = intent.calibration or _DEFAULT_CALIBRATION
            params["calib_size"] = _CALIBRATION_SAMPLES
            notes.append(
                f"Calibrated on {params['calib_dataset']}; text from your own domain calibrates better."
            )
        options = "".join(f" --{key} {shlex.quote(str(value))}" for key, value in params.items())
        return BackendParams(
            backend=self.name,
            method=intent.method,
            params=params,
            launch=(
                f"python quantize.py --model_dir {shlex.quote(model)}{options} "
                "--output_dir checkpoint "
                "&& trtllm-build --checkpoint_dir checkpoint --output_dir engine"
            ),
            notes=tuple(notes),
        )

    def load(self, stored: StoredQuantization, gpu: Gpu | None, model: str) -> BackendParams:
        """Always refused: engines are built from 16-bit weights."""
        del gpu
        raise impossible(
            f"TensorRT-LLM does not build an engine from {model} here.",
            f"Its format is {stored.format}; engines are built from 16-bit weights.",
            f"{stored.method} on tensorrt with the model's 16-bit checkpoint",
        )
