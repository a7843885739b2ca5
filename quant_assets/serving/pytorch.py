"""PyTorch: transformers, with bitsandbytes quantizing while a model loads."""

from pathlib import Path
from typing import ClassVar

from quant_assets.gpus.registry import Gpu
from quant_assets.models.quantization_intent import Backend, QuantizationIntent
from quant_assets.models.stored_quantization import StoredQuantization
from quant_assets.serving.backend import (
    ADA,
    AMPERE,
    PASCAL,
    TURING,
    BackendParams,
    ParamValue,
    ServingBackend,
    compute_capability,
    impossible,
    require_bfloat16,
    require_capability,
    split_revision,
)


class PyTorch(ServingBackend):
    """`AutoModelForCausalLM.from_pretrained` and its parameters."""

    name: ClassVar[Backend] = "pytorch"
    activations: ClassVar[str] = (
        "bitsandbytes multiplies 8-bit activations with 8-bit weights (LLM.int8()), and keeps "
        "activations at 16 bits with 4-bit weights."
    )

    def quantize(self, intent: QuantizationIntent, gpu: Gpu | None, model: str) -> BackendParams:
        """bitsandbytes with 8-bit integers or 4-bit NormalFloat (QLoRA, arXiv:2305.14314)."""
        capability = compute_capability(gpu)
        dtype = "float16" if capability is not None and capability < AMPERE else "bfloat16"
        if intent.method == "fp8":
            raise impossible(
                "fp8 is not available on PyTorch here.",
                "bitsandbytes, which quantizes models while they load, supports 8 and 4 bits as "
                "integers or NormalFloat.",
                "int8 on pytorch, or fp8 on vllm with an Ada, Hopper or newer GPU",
            )
        params: dict[str, ParamValue] = {}
        if intent.method == "int8":
            require_capability(
                gpu, TURING, "bitsandbytes with 8 bits", "int4 on pytorch, or int8 on llamacpp"
            )
            params = {"load_in_8bit": True}
        elif intent.method == "int4":
            require_capability(gpu, PASCAL, "bitsandbytes with 4 bits", "int4 on llamacpp")
            params = {
                "load_in_4bit": True,
                "bnb_4bit_quant_type": "nf4",
                "bnb_4bit_use_double_quant": True,
                "bnb_4bit_compute_dtype": dtype,
            }
        name, revision = split_revision(model)
        pinned = f", revision={revision!r}" if revision else ""
        arguments = ", ".join(f"{key}={value!r}" for key, value in params.items())
        quantization = f", quantization_config=BitsAndBytesConfig({arguments})" if params else ""
        notes = []
        if params:
            notes.append("bitsandbytes quantizes while loading; no calibration is needed.")
        return BackendParams(
            backend=self.name,
            method=intent.method,
            params={**params, "torch_dtype": dtype},
            launch=f"AutoModelForCausalLM.from_pretrained({name!r}{pinned}, "
            f"dtype={dtype!r}{quantization})",
            notes=tuple(notes),
        )

    def load(
        self,
        stored: StoredQuantization,
        intent: QuantizationIntent,
        gpu: Gpu | None,
        model: str,
    ) -> BackendParams:
        """transformers reads the quantization from the checkpoint itself."""
        del intent
        if stored.format == "fp8":
            require_capability(
                gpu, ADA, "An fp8 checkpoint on PyTorch", "the model's 16-bit checkpoint with int8"
            )
        folder, gguf_file = model, ""
        params: dict[str, ParamValue] = {"torch_dtype": "auto"}
        if stored.format == "gguf":
            folder, gguf_file = str(Path(model).parent), Path(model).name
            params["gguf_file"] = gguf_file
        option = f", gguf_file={gguf_file!r}" if gguf_file else ""
        return BackendParams(
            backend=self.name,
            method=stored.method,
            params=params,
            launch=f"AutoModelForCausalLM.from_pretrained({folder!r}, dtype='auto'{option})",
            notes=(f"The checkpoint is {stored.format} and carries its own quantization.",),
        )

    def check_range(self, answer: BackendParams, gpu: Gpu | None, model: Path) -> None:
        """GPUs older than Ampere lack bfloat16: torch would compute in float16."""
        require_bfloat16(answer.backend, gpu, model)
