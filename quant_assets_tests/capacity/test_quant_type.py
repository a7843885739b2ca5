"""`QuantType` has the specified names and figures; the example prints them."""

import subprocess
import sys

import pytest

from quant_assets.capacity.quant_type import QuantType, estimate_memory_gb, exact_memory_gb
from quant_assets.settings import PROJECT_ROOT

TABLE = {
    "Q4_0": (4.5, 7.1, 3.9),
    "Q4_K": (4.5, 7.1, 3.9),
    "Q5_K": (5.5, 5.8, 4.8),
    "Q6_K": (6.5, 4.9, 5.7),
    "Q8_0": (8.0, 4.0, 7.0),
    "F16": (16.0, 2.0, 14.0),
    "F32": (32.0, 1.0, 28.0),
}
EXACT_BITS = {
    "Q4_0": 4.5,
    "Q4_K": 4.5,
    "Q5_K": 5.5,
    "Q6_K": 6.5625,
    "Q8_0": 8.5,
    "F16": 16,
    "F32": 32,
}


def test_the_table() -> None:
    assert {
        quant.name: (
            quant.bits_per_weight(),
            round(quant.compression_ratio(), 1),
            round(estimate_memory_gb(7.0, quant), 1),
        )
        for quant in QuantType
    } == TABLE


def test_exact_figures_are_beside_the_nominal_ones() -> None:
    for quant in QuantType:
        assert quant.exact_bits_per_weight() == EXACT_BITS[quant.name]
        assert quant.exact_compression_ratio() == pytest.approx(32 / EXACT_BITS[quant.name])
        assert exact_memory_gb(7.0, quant) == pytest.approx(7.0 * EXACT_BITS[quant.name] / 8)


def test_memory_is_proportional_to_parameters() -> None:
    assert estimate_memory_gb(70.0, QuantType.Q8_0) == 70.0


def test_the_example_prints_the_table_and_advice() -> None:
    printed = subprocess.run(
        [sys.executable, PROJECT_ROOT / "examples" / "quantization.py"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    rows = {line.split("│")[1].strip(): line for line in printed.splitlines() if "│" in line}
    for name, (bits, ratio, size) in TABLE.items():
        cells = [cell.strip() for cell in rows[name].split("│")]
        assert (cells[2], cells[4], cells[6]) == (f"{bits:.1f}", f"{ratio:.1f}x", f"{size:.1f}")
    for name in ("Q4_K", "Q5_K", "Q6_K", "Q8_0", "F16"):
        assert f"\n{name}: " in printed
