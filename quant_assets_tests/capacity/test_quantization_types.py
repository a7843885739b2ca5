"""The table of quantization types: seed figures, compression, advice."""

import pytest

from quant_assets.capacity.quantization_types import quantization_type, quantization_types
from quant_assets.errors import InputError
from quant_assets.formats.gguf_levels import GGUF_LEVELS


@pytest.mark.parametrize(
    ("name", "nominal_bits", "size_7b_gb"),
    [
        ("Q4_0", 4.5, 3.9),
        ("Q4_K", 4.5, 3.9),
        ("Q5_K", 5.5, 4.8),
        ("Q6_K", 6.5, 5.7),
        ("Q8_0", 8.0, 7.0),
        ("F16", 16.0, 14.0),
        ("F32", 32.0, 28.0),
    ],
)
def test_seed_figures(name: str, nominal_bits: float, size_7b_gb: float) -> None:
    entry = quantization_type(name)
    assert entry.nominal_bits_per_weight == nominal_bits
    assert round(entry.nominal_size_gb(7e9), 1) == size_7b_gb


def test_exact_and_nominal_bits_differ_by_block_layout() -> None:
    assert quantization_type("Q8_0").exact_bits_per_weight == 8.5
    assert quantization_type("Q6_K").exact_bits_per_weight == 6.5625
    assert quantization_type("Q8_0").size_gb(7e9) == pytest.approx(7.4375)


def test_compression_is_by_exact_bits() -> None:
    entry = quantization_type("Q8_0")
    assert entry.compression_vs_f32 == pytest.approx(32 / 8.5)
    assert entry.compression_vs_f16 == pytest.approx(16 / 8.5)


def test_every_level_that_is_written_is_listed_with_its_mixture() -> None:
    listed = {entry.name: entry for entry in quantization_types() if entry.kind == "gguf_level"}
    assert set(listed) == {level.name for level in GGUF_LEVELS} - {"F32", "F16", "BF16"}
    # Q4_K_M is Q4_K with some tensors in Q6_K.
    assert 4.5 < listed["Q4_K_M"].exact_bits_per_weight < 6.5625
    assert listed["Q4_K_M"].measured_on is not None


def test_a_level_named_after_a_type_is_distinguished() -> None:
    assert quantization_type("Q4_0").exact_bits_per_weight == 4.5
    assert quantization_type("Q4_0", "gguf_level").exact_bits_per_weight > 4.5


def test_every_entry_has_advice_of_one_line_and_a_unique_name_in_its_kind() -> None:
    entries = quantization_types()
    assert len({(entry.kind, entry.name) for entry in entries}) == len(entries)
    for entry in entries:
        assert 10 < len(entry.when_to_choose) < 80, entry.name
        assert "\n" not in entry.when_to_choose


def test_unknown_name() -> None:
    with pytest.raises(InputError, match="Q7_K"):
        quantization_type("Q7_K")
