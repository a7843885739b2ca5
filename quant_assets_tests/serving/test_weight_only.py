"""`weight_only` and `calibration` of an intent: honoured, refused or noted, never ignored."""

import itertools
import re
from collections import Counter
from typing import Any, cast

import pytest

from quant_assets.errors import InputError
from quant_assets.gpus.registry import Gpu, load_registry
from quant_assets.models.quantization_intent import (
    BACKEND_METHODS,
    Backend,
    CalibrationConfig,
    QuantizationIntent,
    gguf_level,
)
from quant_assets.serving.backend import BackendParams
from quant_assets.serving.intent import BACKENDS, UnifiedQuantizationConfig

GPUS = (None, "T4", "V100", "A100", "L4", "H100", "MI300X", "M2 Max")
METHODS = ("none", "int8", "int4", "fp8")
QUANTIZES_ACTIVATIONS = {
    # What each parameter means to its own engine.
    ("pytorch", "load_in_8bit"),
    ("tensorrt", "int8_sq"),
    ("tensorrt", "w4a8_awq"),
    ("tensorrt", "fp8"),
}


def every_intent() -> list[dict[str, Any]]:
    """Every method, form and backend method that do not contradict each other."""
    names = {name for methods in BACKEND_METHODS.values() for name in methods}
    found = []
    for method, form, name in itertools.product(
        METHODS, (None, True, False), (None, *sorted(names))
    ):
        values: dict[str, Any] = {"method": method}
        if form is not None:
            values["weight_only"] = form
        if name is not None:
            values["backend_method"] = name
        try:
            QuantizationIntent.model_validate(values)
        except ValueError:
            continue
        found.append(values)
    return found


def activations_are_quantized(answer: BackendParams, card: str | None) -> bool:
    names = {(answer.backend, name) for name in answer.params}
    names |= {(answer.backend, value) for value in answer.params.values()}
    if ("vllm", "fp8") in names:
        return card in (None, "L4", "H100", "MI300X")
    return bool(names & QUANTIZES_ACTIVATIONS)


def answer_or_refusal(
    values: dict[str, Any], backend: Backend, gpu: Gpu | None
) -> BackendParams | InputError:
    try:
        return UnifiedQuantizationConfig.model_validate(values).to_backend_params(backend, gpu)
    except InputError as error:
        return error


def works(text: str, values: dict[str, Any], backend: Backend, gpu: Gpu | None) -> bool:
    """Whether the alternative that a refusal of `weight_only` names is answered."""
    named = re.search(r"(int8|int4|fp8) with weight_only: (true|false) on (\w+)", text)
    if named:
        values = {"method": named[1], "weight_only": named[2] == "true"}
        backend = cast("Backend", named[3])
    else:
        assert f"on {backend} without weight_only" in text
        values = {key: value for key, value in values.items() if key != "weight_only"}
    return isinstance(answer_or_refusal(values, backend, gpu), BackendParams)


@pytest.mark.parametrize("backend", list(BACKENDS))
@pytest.mark.parametrize("card", GPUS)
def test_a_stated_form_is_honoured_or_refused_with_what_works(
    backend: Backend, card: str | None
) -> None:
    gpu = load_registry().variants(card)[0] if card else None
    counts: Counter[type] = Counter()
    for values in every_intent():
        if "weight_only" not in values:
            continue
        answer = answer_or_refusal(values, backend, gpu)
        counts[type(answer)] += 1
        if isinstance(answer, BackendParams):
            assert activations_are_quantized(answer, card) is not values["weight_only"], values
            continue
        assert answer.what
        assert answer.why
        assert "Nearest possible alternative" in answer.next_step
        if "with weight_only:" in answer.what:
            assert works(answer.next_step, values, backend, gpu), (values, answer.next_step)
    assert counts[InputError]
    assert counts[BackendParams] or card


def test_weight_only_by_default_is_not_a_request() -> None:
    unstated = UnifiedQuantizationConfig(method="int8")
    assert unstated.weight_only is True
    assert unstated.stated_weight_only is None
    assert unstated.to_backend_params("tensorrt").params["qformat"] == "int8_sq"
    stated = UnifiedQuantizationConfig(method="int8", weight_only=True)
    assert stated.to_backend_params("tensorrt").params["qformat"] == "int8_wo"
    assert UnifiedQuantizationConfig.of(unstated).stated_weight_only is None


def test_a_format_that_contradicts_the_form_is_refused() -> None:
    for name, form in (("int8_sq", True), ("int8_wo", False), ("int4_wo", False)):
        config = UnifiedQuantizationConfig(
            method="int8" if name.startswith("int8") else "int4",
            backend_method=name,
            weight_only=form,
        )
        with pytest.raises(InputError, match=name) as caught:
            config.to_backend_params("tensorrt")
        assert "on tensorrt" in caught.value.next_step


def test_vllm_does_not_quantize_to_8_bits_with_bitsandbytes() -> None:
    config = UnifiedQuantizationConfig(method="int8", backend_method="bitsandbytes")
    assert config.to_backend_params("pytorch").params["load_in_8bit"] is True
    with pytest.raises(InputError, match="bitsandbytes does int4"):
        config.to_backend_params("vllm")


@pytest.mark.parametrize("backend", list(BACKENDS))
def test_a_calibration_is_used_refused_or_noted(backend: Backend) -> None:
    used = 0
    for values in every_intent():
        config = UnifiedQuantizationConfig.model_validate(
            {
                **values,
                "calibration": {"dataset": "texts", "num_samples": 77, "max_length": 512},
            }
        )
        try:
            answer = config.to_backend_params(backend)
        except InputError:
            continue
        said = " ".join((answer.launch, *answer.notes))
        if answer.calibrated:
            assert "texts" in said
            assert "77" in said
            used += 1
        else:
            assert "calibration is not used" in said, values
    assert used or backend == "pytorch"


def test_every_field_of_a_calibration_reaches_each_command() -> None:
    calibration = CalibrationConfig(dataset="hub:me/texts", num_samples=64, max_length=1024)
    config = UnifiedQuantizationConfig(method="int4", calibration=calibration)
    tensorrt = config.to_backend_params("tensorrt")
    assert {
        "calib_dataset": "me/texts",
        "calib_size": 64,
        "calib_max_seq_length": 1024,
    }.items() <= tensorrt.params.items()
    assert "--calib_max_seq_length 1024" in tensorrt.launch
    (note,) = config.to_backend_params("vllm").notes
    assert "--calibration hub:me/texts --calibration-samples 64 --sequence-length 1024" in note


def test_an_importance_matrix_is_measured_on_a_text_file() -> None:
    calibration = CalibrationConfig(dataset="my texts.txt", num_samples=50, max_length=2048)
    config = UnifiedQuantizationConfig(method="int4", calibration=calibration)
    measure, length, make = config.to_backend_params("llamacpp", name="/m/tiny.gguf").notes
    assert measure.endswith("quant-assets imatrix /m/tiny.gguf --text 'my texts.txt' --chunks 50")
    assert "max_length is not used" in length
    assert make.endswith("--to gguf --level Q4_K_M --imatrix tiny.imatrix.gguf")


@pytest.mark.parametrize("backend", ["vllm", "tensorrt"])
def test_a_split_that_nothing_reads_is_refused(backend: Backend) -> None:
    config = UnifiedQuantizationConfig(
        method="int4", calibration=CalibrationConfig(dataset="hub:a/b", split="validation")
    )
    with pytest.raises(InputError, match="split 'validation'") as caught:
        config.to_backend_params(backend)
    assert "'train'" in caught.value.next_step


def test_tensorrt_refuses_a_single_file() -> None:
    config = UnifiedQuantizationConfig.model_validate(
        {"method": "int8", "calibration": "texts.jsonl"}
    )
    with pytest.raises(InputError, match=r"texts\.jsonl") as caught:
        config.to_backend_params("tensorrt")
    assert "folder" in caught.value.next_step


def test_a_string_is_a_data_set() -> None:
    by_name = UnifiedQuantizationConfig.model_validate({"method": "int8", "calibration": "mine"})
    assert by_name.calibration == CalibrationConfig(dataset="mine")
    assert UnifiedQuantizationConfig().calibration is None


@pytest.mark.parametrize(
    "calibration", [{"samples": 3}, {"num_samples": 0}, {"dataset": ""}, {"max_length": -1}, 7]
)
def test_a_wrong_calibration_is_refused(calibration: object) -> None:
    with pytest.raises(ValueError, match="calibration"):
        UnifiedQuantizationConfig.model_validate({"method": "int8", "calibration": calibration})


def test_the_level_of_a_model_list_is_the_one_that_llama_cpp_answers() -> None:
    for values in every_intent():
        config = UnifiedQuantizationConfig.model_validate(values)
        try:
            answered = config.to_backend_params("llamacpp").params["level"]
        except InputError:
            answered = None
        assert gguf_level(config) == answered, values
    assert gguf_level(UnifiedQuantizationConfig(method="auto")) is None


def test_none_with_quantized_activations_contradicts_itself() -> None:
    with pytest.raises(ValueError, match="none quantizes nothing"):
        UnifiedQuantizationConfig(method="none", weight_only=False)
