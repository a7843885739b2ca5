"""What a user asks for when quantizing a model, in words that no single backend owns.

An intent is stated once, on the command line or as `quantization:` in the model list;
`quant_assets.serving` translates it for each backend. Here are the words themselves, and the names
by which each backend calls its methods.
"""

from collections.abc import Mapping
from typing import Any, Final, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

Method = Literal["none", "int8", "int4", "fp8", "auto"]
Backend = Literal["pytorch", "vllm", "tensorrt", "llamacpp"]

DEFAULT_SPLIT: Final = "train"
HUB_PREFIX: Final = "hub:"
"""Marks a calibration data set of the hub, as in `hub:owner/name`."""

_BITS: Final[Mapping[Method, int]] = {"int8": 8, "int4": 4, "fp8": 8}


class BackendMethod(BaseModel):
    """One method of a backend: the intents that it fulfils, by what happens to activations.

    `weight_only` keeps activations at 16 bits; `with_activations` quantizes them too.
    """

    model_config = ConfigDict(frozen=True)

    weight_only: tuple[Method, ...] = ()
    with_activations: tuple[Method, ...] = ()

    @property
    def intents(self) -> tuple[Method, ...]:
        """Every intent that the method fulfils, in one form or the other."""
        return tuple(dict.fromkeys((*self.weight_only, *self.with_activations)))

    def forms(self, method: Method) -> frozenset[bool]:
        """The values of `weight_only` with which it fulfils `method`."""
        forms = {True: self.weight_only, False: self.with_activations}
        return frozenset(form for form, intents in forms.items() if method in intents)


BACKEND_METHODS: Final[Mapping[Backend, Mapping[str, BackendMethod]]] = {
    "pytorch": {
        # 8 bits are LLM.int8() (arXiv:2208.07339), which multiplies 8-bit activations; 4 bits are
        # NormalFloat weights (QLoRA, arXiv:2305.14314).
        "bitsandbytes": BackendMethod(weight_only=("int4",), with_activations=("int8",)),
    },
    "vllm": {
        "awq": BackendMethod(weight_only=("int4",)),
        "awq_marlin": BackendMethod(weight_only=("int4",)),
        "gptq": BackendMethod(weight_only=("int8", "int4")),
        "gptq_marlin": BackendMethod(weight_only=("int8", "int4")),
        # The GPU decides: with fp8 units activations are quantized, on older GPUs they are not.
        "fp8": BackendMethod(weight_only=("fp8",), with_activations=("fp8",)),
        # While loading, vLLM quantizes to 4 bits only.
        "bitsandbytes": BackendMethod(weight_only=("int4",)),
    },
    "tensorrt": {
        "fp8": BackendMethod(with_activations=("fp8",)),
        "int8_sq": BackendMethod(with_activations=("int8",)),
        "int8_wo": BackendMethod(weight_only=("int8",)),
        "int4_awq": BackendMethod(weight_only=("int4",)),
        "int4_wo": BackendMethod(weight_only=("int4",)),
        "w4a8_awq": BackendMethod(with_activations=("int4",)),
    },
    "llamacpp": {
        "Q8_0": BackendMethod(weight_only=("int8",)),
        "Q6_K": BackendMethod(weight_only=("int8",)),
        "Q5_K_M": BackendMethod(weight_only=("int4",)),
        "Q4_K_M": BackendMethod(weight_only=("int4",)),
        "Q4_0": BackendMethod(weight_only=("int4",)),
    },
}
"""Each backend's own names of its methods."""

_GGUF_LEVELS: Final[Mapping[Method, str]] = {"none": "F16", "int8": "Q8_0", "int4": "Q4_K_M"}


class CalibrationConfig(BaseModel):
    """The text on which a method measures activations.

    `dataset` is a file or `hub:owner/name`; `num_samples` counts texts, and `max_length` is their
    length in tokens. A field that is None takes the method's own default.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    dataset: str | None = Field(default=None, min_length=1)
    split: str = Field(default=DEFAULT_SPLIT, min_length=1)
    num_samples: int | None = Field(default=None, ge=1)
    max_length: int | None = Field(default=None, ge=8)


class QuantizationIntent(BaseModel):
    """A user's wish, independent of the engine that serves the model.

    `weight_only` keeps activations at 16 bits. Where it is not given, each backend uses the form
    that is usual there; where it is, a backend honours it or refuses. `calibration` is the text for
    methods that measure activations; a string is the name of its data set. `backend_method` is a
    backend's own name for a method, where the default is not wanted.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    method: Method = "none"
    weight_only: bool = True
    calibration: CalibrationConfig | None = None
    backend_method: str | None = None

    @field_validator("calibration", mode="before")
    @classmethod
    def _dataset_by_name(cls, calibration: Any) -> Any:
        return {"dataset": calibration} if isinstance(calibration, str) else calibration

    @model_validator(mode="after")
    def _known_backend_method(self) -> Self:
        if self.backend_method is None:
            return self
        intents = _intents_by_method().get(self.backend_method)
        if intents is None:
            raise ValueError(
                f"no backend has a method {self.backend_method!r}; "
                f"known: {', '.join(_intents_by_method())}"
            )
        if self.method not in (*intents, "auto"):
            raise ValueError(
                f"{self.backend_method} does {' or '.join(intents)}, not {self.method}"
            )
        return self

    @model_validator(mode="after")
    def _activations_of_something(self) -> Self:
        if self.method == "none" and not self.weight_only:
            raise ValueError("none quantizes nothing, which weight_only: false contradicts")
        return self

    @property
    def enabled(self) -> bool:
        """Whether anything is quantized."""
        return self.method != "none"

    @property
    def bits(self) -> int | None:
        """Nominal bits of a weight, 8 or 4; None without quantization, and for `auto` until the
        model's files are known."""
        return _BITS.get(self.method)

    @property
    def stated_weight_only(self) -> bool | None:
        """`weight_only` where the user gave it; None where each backend chooses."""
        return self.weight_only if "weight_only" in self.model_fields_set else None


def gguf_level(intent: QuantizationIntent) -> str | None:
    """The GGUF level that fulfils an intent.

    None where llama.cpp has none: fp8, quantized activations, or another backend's method; and for
    `auto`, which takes a model as it is.
    """
    if intent.stated_weight_only is False:
        return None
    if intent.backend_method is not None and intent.method != "auto":
        return (
            intent.backend_method if intent.backend_method in BACKEND_METHODS["llamacpp"] else None
        )
    return _GGUF_LEVELS.get(intent.method)


def _intents_by_method() -> dict[str, tuple[Method, ...]]:
    """Names of methods of any backend; two backends may share a name."""
    found: dict[str, tuple[Method, ...]] = {}
    for methods in BACKEND_METHODS.values():
        for name, method in methods.items():
            found[name] = tuple(dict.fromkeys((*found.get(name, ()), *method.intents)))
    return found
