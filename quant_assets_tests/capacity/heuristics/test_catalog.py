"""Strategies by name, their configuration, and strategies from other packages."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from quant_assets.capacity.heuristics.catalog import (
    BUILT_IN,
    ENTRY_POINT_GROUP,
    available_strategies,
    make_strategy,
)
from quant_assets.capacity.heuristics.strategy import GpuFacts
from quant_assets.errors import InputError

PLUGIN = """
from quant_assets.capacity.heuristics.strategy import HeuristicStrategy


class Watts(HeuristicStrategy):
    name = "watts_per_gb"
    inputs = ("vram_gb", "tdp_w")
    factor: float = 1.0

    def columns(self):
        return {"watts_per_gb": "Float64"}

    def evaluate(self, facts):
        if facts.vram_gb is None or facts.tdp_w is None:
            return {"watts_per_gb": None}
        return {"watts_per_gb": self.factor * facts.tdp_w / facts.vram_gb}


class Thief(Watts):
    name = "quantization_capable"


NOT_A_STRATEGY = 3
"""


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A distribution on the path; returns its entry points file, still empty."""
    (tmp_path / "watts_plugin.py").write_text(PLUGIN)
    metadata = tmp_path / "watts_plugin-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: watts-plugin\nVersion: 1.0\n")
    monkeypatch.syspath_prepend(tmp_path)
    available_strategies.cache_clear()
    yield metadata / "entry_points.txt"
    available_strategies.cache_clear()
    sys.modules.pop("watts_plugin", None)


def test_built_in_strategies() -> None:
    assert set(BUILT_IN) == {"quantization_capable", "quantization_capacity", "detailed_capacity"}


def test_a_strategy_from_another_package(installed: Path, tmp_path: Path) -> None:
    installed.write_text(f"[{ENTRY_POINT_GROUP}]\nwatts = watts_plugin:Watts\n")
    assert set(available_strategies()) == {*BUILT_IN, "watts_per_gb"}
    facts = GpuFacts(vram_gb=24, tdp_w=72)
    assert make_strategy("watts_per_gb").evaluate(facts) == {"watts_per_gb": 3.0}
    config = tmp_path / "heuristics.yaml"
    config.write_text("watts_per_gb: {factor: 2}\n")
    configured = make_strategy("watts_per_gb", config=config)
    assert configured.evaluate(facts) == {"watts_per_gb": 6.0}


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("watts_plugin:Absent", "cannot be loaded"),
        ("no_such_module:Thing", "cannot be loaded"),
        ("watts_plugin:NOT_A_STRATEGY", "is not a strategy"),
        ("watts_plugin:Thief", "name that already exists"),
    ],
)
def test_a_broken_plugin_is_named(installed: Path, target: str, message: str) -> None:
    installed.write_text(f"[{ENTRY_POINT_GROUP}]\nentry = {target}\n")
    with pytest.raises(InputError, match=message) as caught:
        available_strategies()
    assert "watts-plugin" in caught.value.what


def test_overrides_win_over_the_file(tmp_path: Path) -> None:
    config = tmp_path / "heuristics.yaml"
    config.write_text("quantization_capacity: {overhead_gb: 1, bits: [8]}\n")
    facts = GpuFacts(vram_gb=15)
    from_file = make_strategy("quantization_capacity", config=config)
    assert from_file.evaluate(facts)["quantization_capacity.7b"] == 2
    overridden = make_strategy("quantization_capacity", config=config, bits=[4])
    assert overridden.evaluate(facts)["quantization_capacity.7b"] == 4


@pytest.mark.parametrize(
    "content",
    [
        "quantization_capacity: {overhead: 1}",
        "quantization_capacity: {model_sizes_gb: {7b: -1}}",
        "quantization_capacity: [1]",
        "- quantization_capacity",
        "quantization_capacity: {",
    ],
)
def test_an_invalid_configuration_names_its_file(content: str, tmp_path: Path) -> None:
    config = tmp_path / "wrong.yaml"
    config.write_text(content)
    with pytest.raises(InputError, match=r"wrong\.yaml"):
        make_strategy("quantization_capacity", config=config)


def test_unknown_names_list_the_available_ones() -> None:
    with pytest.raises(InputError, match="quantization_capable"):
        make_strategy("quantisation")
