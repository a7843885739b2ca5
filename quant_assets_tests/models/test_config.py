"""The `quantization:` block of the model list."""

from pathlib import Path

import pytest

from quant_assets.errors import InputError
from quant_assets.models.config import ModelConfig, load_models

DEFAULT_LEVELS = ("F16", "Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "Q4_0")


def listed(folder: Path, entry: str) -> ModelConfig:
    path = folder / "models.yaml"
    path.write_text(f"models: [{{name: a, source: a/b, {entry}}}]")
    (model,) = load_models(path)
    return model


@pytest.mark.parametrize(
    ("entry", "levels"),
    [
        ("quantization: {method: int4}, gguf_levels: [F16]", ("F16", "Q4_K_M")),
        ("quantization: {method: int8}, gguf_levels: [F16, Q4_0]", ("F16", "Q4_0", "Q8_0")),
        # The baseline comes first, as everywhere.
        ("quantization: {method: none}, gguf_levels: [Q4_0]", ("F16", "Q4_0")),
        ("quantization: {method: int4, backend_method: Q5_K_M}, gguf_levels: [F16]",
         ("F16", "Q5_K_M")),
        ("quantization: {method: int4, weight_only: true}, gguf_levels: [F16]",
         ("F16", "Q4_K_M")),
        # Not for llama.cpp, or already listed, by its short name too.
        ("quantization: {method: fp8}, gguf_levels: [F16]", ("F16",)),
        ("quantization: {method: auto}, gguf_levels: [F16]", ("F16",)),
        ("quantization: {method: int4, weight_only: false}, gguf_levels: [F16]", ("F16",)),
        ("quantization: {method: int4, backend_method: gptq}, gguf_levels: [F16]", ("F16",)),
        ("quantization: {method: int4}, gguf_levels: [q4_k, F16]", ("Q4_K_M", "F16")),
        ("quantization: {method: int4}", DEFAULT_LEVELS),
        ("gguf_levels: [F16]", ("F16",)),
    ],
)  # fmt: skip
def test_the_level_of_the_intent_joins_the_levels(
    entry: str, levels: tuple[str, ...], tmp_path: Path
) -> None:
    assert listed(tmp_path, entry).gguf_levels == levels


@pytest.mark.parametrize(
    ("block", "field"),
    [
        ("{method: int5}", "models.0.quantization.method"),
        ("{metod: int4}", "models.0.quantization.metod"),
        ("int4", "models.0.quantization"),
        ("{method: int4, weight_only: perhaps}", "models.0.quantization.weight_only"),
        ("{method: int4, calibration: {rows: 3}}", "models.0.quantization.calibration.rows"),
        ("{method: int4, calibration: {num_samples: 0}}", "quantization.calibration.num_samples"),
        ("{method: fp8, backend_method: awq}", "models.0.quantization: awq does int4, not fp8"),
        ("{method: int4, backend_method: magic}", "models.0.quantization: no backend has a method"),
        ("{method: none, weight_only: false}", "models.0.quantization: none quantizes nothing"),
    ],
)
def test_a_wrong_block_is_one_error_that_names_file_and_field(
    block: str, field: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError) as caught:
        listed(tmp_path, f"quantization: {block}")
    assert str(tmp_path / "models.yaml") in caught.value.what
    assert field in caught.value.why
    assert caught.value.why.count("models.0") == 1
    assert "\n" not in caught.value.why


def test_several_wrong_fields_are_named_together(tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        listed(tmp_path, "quantization: {method: int5, split: x}, typo: 1")
    for field in ("quantization.method", "quantization.split", "models.0.typo"):
        assert field in caught.value.why
