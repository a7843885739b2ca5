"""TensorRT-LLM: the format that its `quantize.py` calibrates and `trtllm-build` compiles."""

import shlex
from pathlib import Path
from typing import ClassVar, Final

from quant_assets.gpus.registry import Gpu
from quant_assets.models.quantization_intent import (
    HUB_PREFIX,
    Backend,
    CalibrationConfig,
    QuantizationIntent,
)
from quant_assets.models.stored_quantization import StoredQuantization
from quant_assets.serving.backend import (
    ADA,
    AMPERE,
    BackendParams,
    ParamValue,
    ServingBackend,
    impossible,
    require_capability,
    require_training_split,
    split_revision,
)

_DEFAULT_CALIBRATION: Final = "cnn_dailymail"
_CALIBRATION_SAMPLES: Final = 512
_UNCALIBRATED: Final = frozenset({"full_prec", "int8_wo", "int4_wo"})
_FILES: Final = frozenset({".txt", ".json", ".jsonl", ".parquet"})


class TensorRtLlm(ServingBackend):
    """`quantize.py` and `trtllm-build` of TensorRT-LLM."""

    name: ClassVar[Backend] = "tensorrt"
    activations: ClassVar[str] = (
        "int8_wo, int4_awq and int4_wo keep activations at 16 bits; int8_sq and w4a8_awq quantize "
        "them to 8 bits, fp8 to fp8."
    )

    def quantize(self, intent: QuantizationIntent, gpu: Gpu | None, model: str) -> BackendParams:
        """`qformat`, with a calibration set for every format that measures activations."""
        require_capability(gpu, AMPERE, "TensorRT-LLM", "the backend llamacpp")
        defaults = {
            "none": "full_prec",
            "fp8": "fp8",
            "int8": "int8_wo" if intent.stated_weight_only else "int8_sq",
            "int4": "w4a8_awq" if intent.stated_weight_only is False else "int4_awq",
        }
        qformat = intent.backend_method or defaults[intent.method]
        if qformat in ("fp8", "w4a8_awq"):
            nearest = (
                "int8 on tensorrt" if qformat == "fp8" else "int4 with weight_only on tensorrt"
            )
            require_capability(gpu, ADA, f"TensorRT-LLM's {qformat}", nearest)
        params: dict[str, ParamValue] = {"qformat": qformat}
        notes = []
        calibrated = qformat not in _UNCALIBRATED
        if calibrated:
            params |= _calibration_params(intent.calibration or CalibrationConfig())
            notes.append(
                f"Calibrated on {params['calib_dataset']}; text from your own domain calibrates better."
            )
        name, revision = split_revision(model)
        if revision:
            notes.append(
                f"quantize.py takes no revision: download {revision} and give its folder instead."
            )
        options = "".join(f" --{key} {shlex.quote(str(value))}" for key, value in params.items())
        return BackendParams(
            backend=self.name,
            method=intent.method,
            params=params,
            launch=(
                f"python quantize.py --model_dir {shlex.quote(name)}{options} "
                "--output_dir checkpoint "
                "&& trtllm-build --checkpoint_dir checkpoint --output_dir engine"
            ),
            calibrated=calibrated,
            notes=tuple(notes),
        )

    def load(
        self,
        stored: StoredQuantization,
        intent: QuantizationIntent,
        gpu: Gpu | None,
        model: str,
    ) -> BackendParams:
        """Always refused: engines are built from 16-bit weights."""
        del intent, gpu
        raise impossible(
            f"TensorRT-LLM does not build an engine from {model} here.",
            f"Its format is {stored.format}; engines are built from 16-bit weights.",
            f"{stored.method} on tensorrt with the model's 16-bit checkpoint",
        )


def _calibration_params(calibration: CalibrationConfig) -> dict[str, ParamValue]:
    """The options of `quantize.py` for a data set of the hub or a local folder."""
    require_training_split("TensorRT-LLM", calibration)
    dataset = (calibration.dataset or _DEFAULT_CALIBRATION).removeprefix(HUB_PREFIX)
    if Path(dataset).suffix in _FILES:
        raise impossible(
            f"TensorRT-LLM does not calibrate on the file {dataset}.",
            "Its quantize.py reads a data set of the hub or a folder with one.",
            "a folder that holds the file, or hub:owner/name",
        )
    params: dict[str, ParamValue] = {
        "calib_dataset": dataset,
        "calib_size": calibration.num_samples or _CALIBRATION_SAMPLES,
    }
    if calibration.max_length is not None:
        params["calib_max_seq_length"] = calibration.max_length
    return params
