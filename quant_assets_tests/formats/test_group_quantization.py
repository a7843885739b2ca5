"""GPTQ and AWQ: the bits per weight agree with the tensors of such files."""

import pytest

from quant_assets.errors import InputError
from quant_assets.formats.group_quantization import (
    GROUP_QUANTIZATIONS,
    PER_CHANNEL,
    GroupQuantization,
    parse_group_quantization,
)


def stored_bits(quantization: GroupQuantization, inputs: int, outputs: int) -> float:
    """Bits per weight, counted over the tensors of a GPTQ or AWQ file (int32 and fp16)."""
    groups = 1 if quantization.group_size == PER_CHANNEL else inputs // quantization.group_size
    words = inputs * outputs * quantization.bits // 32  # qweight
    words += groups * outputs * quantization.bits // 32  # qzeros
    words += inputs if quantization.method == "gptq" else 0  # g_idx
    halves = groups * outputs  # scales
    return (32 * words + 16 * halves) / (inputs * outputs)


@pytest.mark.parametrize("quantization", GROUP_QUANTIZATIONS, ids=lambda entry: entry.name)
def test_exact_bits_count_every_tensor(quantization: GroupQuantization) -> None:
    for inputs, outputs in ((4096, 4096), (4096, 14336), (14336, 4096)):
        assert quantization.bits_per_weight(inputs, outputs) == pytest.approx(
            stored_bits(quantization, inputs, outputs), rel=1e-12
        )


@pytest.mark.parametrize("quantization", GROUP_QUANTIZATIONS, ids=lambda entry: entry.name)
def test_names_are_read_back(quantization: GroupQuantization) -> None:
    assert parse_group_quantization(quantization.name) == quantization
    assert parse_group_quantization(quantization.name.upper()) == quantization


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("gptq:8:g64", "gptq-8bit-g64"),
        ("AWQ-4bit", "awq-4bit-g128"),
        ("gptq4", "gptq-4bit-g128"),
        ("gptq-4bits-g-1", "gptq-4bit-channel"),
    ],
)
def test_spellings(text: str, name: str) -> None:
    parsed = parse_group_quantization(text)
    assert parsed is not None and parsed.name == name


@pytest.mark.parametrize("text", ["Q4_K_M", "gptq", "F16", "exl2-4bit", "gptq-4bit-g128-x"])
def test_other_names_are_not_claimed(text: str) -> None:
    assert parse_group_quantization(text) is None


@pytest.mark.parametrize("text", ["gptq-5bit-g128", "awq-8bit", "gptq-4bit-g100", "awq-4bit-g7"])
def test_impossible_combinations_are_refused(text: str) -> None:
    with pytest.raises(InputError):
        parse_group_quantization(text)
