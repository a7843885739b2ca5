"""The capacity of offers in the graph follows the configuration of the heuristics."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from quant_assets.assets.listings import build_listings
from quant_assets.listings.stages import EnrichedListings
from quant_assets.listings.store import ListingStore
from quant_assets.resources.stores import DataRoot
from quant_assets.settings import get_settings


@pytest.fixture
def own_heuristics(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A data root with one offer, and the heuristics' configuration of a user."""
    drop = tmp_path / "drop"
    drop.mkdir()
    (drop / "in.csv").write_text("title,price\nH100 SXM 80GB,$24000\n")
    config = tmp_path / "mine.yaml"
    config.write_text(
        "quantization_capacity: {overhead_gb: 1, model_sizes_gb: {7b: 3.5, 13b: 6.5, 70b: 40}}\n"
    )
    monkeypatch.setenv("QUANT_ASSETS_HEURISTICS_FILE", str(config))
    monkeypatch.setenv("QUANT_ASSETS_LISTINGS_FOLDER", str(drop))
    get_settings.cache_clear()
    yield tmp_path / "home"
    get_settings.cache_clear()


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({}, {"7b": 22, "13b": 12, "70b": 1}),
        (
            {"bits": [4, 8], "overhead_gb": 2.0},
            {"7b_4bit": 22, "13b_4bit": 12, "70b_4bit": 1,
             "7b_8bit": 11, "13b_8bit": 6, "70b_8bit": 0},
        ),
    ],
)  # fmt: skip
def test_enriched_listings_use_the_configured_sizes(
    own_heuristics: Path, config: dict[str, Any], expected: dict[str, int]
) -> None:
    data = str(get_settings().data)
    result = dg.materialize(
        build_listings(),
        selection=[
            "raw_listings",
            "normalized_listings",
            "quarantined_listings",
            "enriched_listings",
        ],
        resources={"data_root": DataRoot(home=str(own_heuristics), data=data)},
        run_config={"ops": {"enriched_listings": {"config": config}}},
    )
    assert result.success
    kept = ListingStore(own_heuristics / "listings").load(EnrichedListings)
    assert json.loads(kept.frame()["quantization_capacity"][0]) == expected
