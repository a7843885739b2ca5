"""The published shapes, and the shipped mixtures against llama.cpp itself."""

import pytest

from quant_assets.capacity.reference_models import (
    mixture_bits,
    nearest_reference,
    reference_models,
)
from quant_assets.capacity.update_gguf_mixtures import measure_mixtures
from quant_assets.formats.gguf_levels import GGUF_LEVELS

LEVELS = [level.name for level in GGUF_LEVELS]


@pytest.mark.parametrize(
    ("name", "billions"),
    [
        ("SmolLM2 135M", 0.1345),
        ("Llama 3.2 1B", 1.2358),
        ("Llama 3.2 3B", 3.2127),
        ("Llama 2 7B", 6.7384),
        ("Llama 3 8B", 8.0303),
        ("Llama 2 13B", 13.0159),
        ("Mistral Small 3 24B", 23.5724),
        ("Llama 3 70B", 70.5537),
        ("Llama 3.1 405B", 405.8534),
    ],
)
def test_parameters_add_up_to_the_published_number(name: str, billions: float) -> None:
    assert reference_models()[name].shape.n_parameters / 1e9 == pytest.approx(billions, abs=6e-5)


@pytest.mark.parametrize("name", ["SmolLM2 135M", "Llama 2 7B", "Llama 3 8B", "Llama 3 70B"])
def test_shipped_mixtures_are_what_llama_cpp_decides(name: str) -> None:
    measured = measure_mixtures(reference_models()[name], LEVELS)
    for level in LEVELS:
        assert mixture_bits(level, name) == pytest.approx(measured[level], abs=5.1e-5), level


def test_every_shape_has_every_level() -> None:
    for name in reference_models():
        for level in LEVELS:
            assert 1.5 < mixture_bits(level, name) <= 32


def test_nearest_is_by_ratio() -> None:
    assert nearest_reference(7e9).name == "Llama 2 7B"
    assert nearest_reference(8e9).name == "Llama 3 8B"
    assert nearest_reference(1e12).name == "Llama 3.1 405B"
    # 2.05 B is nearer to 1.24 B by difference and to 3.21 B by ratio.
    assert nearest_reference(2.05e9).name == "Llama 3.2 3B"


def test_each_capacity_class_has_one_shape() -> None:
    classes = [model.capacity_class for model in reference_models().values()]
    assert sorted(filter(None, classes)) == ["13b", "70b", "7b"]
