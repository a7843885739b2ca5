"""GGUF levels against llama.cpp's own names and numbers."""

import pytest

from quant_assets.errors import InputError
from quant_assets.formats.ggml_types import GGML_TYPES
from quant_assets.formats.gguf_levels import GGUF_LEVELS, parse_level


def test_numbers_are_those_of_llama_cpp() -> None:
    import llama_cpp

    for level in GGUF_LEVELS:
        prefix = "LLAMA_FTYPE_ALL_" if level.name == "F32" else "LLAMA_FTYPE_MOSTLY_"
        assert level.ftype == getattr(llama_cpp, prefix + level.name), level


def test_names_and_numbers_are_unique() -> None:
    assert len({level.name for level in GGUF_LEVELS}) == len(GGUF_LEVELS)
    assert len({level.ftype for level in GGUF_LEVELS}) == len(GGUF_LEVELS)


def test_the_main_type_of_a_level_is_a_tensor_type() -> None:
    for level in GGUF_LEVELS:
        assert level.main_type in GGML_TYPES, level
    named = {"Q4_K_M": "Q4_K", "Q3_K_L": "Q3_K", "Q2_K_S": "Q2_K", "Q6_K": "Q6_K", "Q8_0": "Q8_0"}
    mixtures = {"IQ3_M": "IQ3_S", "IQ2_S": "IQ2_XS", "IQ4_XS": "IQ4_XS"}
    for name, main in {**named, **mixtures}.items():
        assert parse_level(name).main_type == main


@pytest.mark.parametrize("text", ["Q4_K_M", "q4_k_m", "Q4_k_M", " q4-k-m ", "q4_k"])
def test_every_spelling(text: str) -> None:
    assert parse_level(text).name == "Q4_K_M"


def test_similar_names_are_suggested() -> None:
    with pytest.raises(InputError) as caught:
        parse_level("Q5KM")
    assert "Q5_K_M" in caught.value.why
    assert caught.value.exit_code == 3
