"""The block layouts agree with those in llama.cpp's own Python package."""

import pytest
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

from quant_assets.errors import InputError
from quant_assets.formats.ggml_types import (
    GGML_TYPES,
    WEIGHT_TYPES,
    ggml_type,
    ggml_type_of_number,
)


def test_no_type_of_llama_cpp_is_missing() -> None:
    assert set(GGML_TYPES) == {kind.name for kind in GGML_QUANT_SIZES}


@pytest.mark.parametrize("kind", list(GGML_QUANT_SIZES), ids=lambda kind: kind.name)
def test_block_layout(kind: GGMLQuantizationType) -> None:
    entry = GGML_TYPES[kind.name]
    assert entry.number == int(kind)
    assert (entry.block_size, entry.block_bytes) == GGML_QUANT_SIZES[kind]
    assert ggml_type_of_number(int(kind)) is entry


def test_nominal_bits_stay_near_the_exact_ones() -> None:
    for entry in WEIGHT_TYPES:
        assert entry.nominal_bits == pytest.approx(entry.bits_per_weight, rel=0.07), entry.name


def test_rows_take_whole_blocks() -> None:
    assert ggml_type("q4_0").row_bytes(64) == 36
    assert ggml_type("Q4_0").row_bytes(65) == 54
    assert ggml_type("F16").row_bytes(65) == 130


def test_unknown_names_and_numbers() -> None:
    with pytest.raises(InputError, match="Q9_9"):
        ggml_type("Q9_9")
    assert ggml_type_of_number(4) is None  # Q4_2, removed from ggml
