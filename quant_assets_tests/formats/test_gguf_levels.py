"""GGUF levels against llama.cpp's own names and numbers."""

import pytest

from quant_assets.errors import InputError
from quant_assets.formats.gguf_levels import GGUF_LEVELS, parse_level


def test_numbers_are_those_of_llama_cpp() -> None:
    import llama_cpp

    for level in GGUF_LEVELS:
        prefix = "LLAMA_FTYPE_ALL_" if level.name == "F32" else "LLAMA_FTYPE_MOSTLY_"
        assert level.ftype == getattr(llama_cpp, prefix + level.name), level


def test_names_and_numbers_are_unique() -> None:
    assert len({level.name for level in GGUF_LEVELS}) == len(GGUF_LEVELS)
    assert len({level.ftype for level in GGUF_LEVELS}) == len(GGUF_LEVELS)


@pytest.mark.parametrize("text", ["Q4_K_M", "q4_k_m", "Q4_k_M", " q4-k-m ", "q4_k"])
def test_every_spelling(text: str) -> None:
    assert parse_level(text).name == "Q4_K_M"


def test_similar_names_are_suggested() -> None:
    with pytest.raises(InputError) as caught:
        parse_level("Q5KM")
    assert "Q5_K_M" in caught.value.why
    assert caught.value.exit_code == 3
