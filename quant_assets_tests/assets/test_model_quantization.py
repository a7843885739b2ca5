"""The `quantization:` block of a model, in the graph."""

from pathlib import Path

import dagster as dg
import pytest

from quant_assets.assets.source_models import build_source_model
from quant_assets.definitions import build_definitions
from quant_assets.models.config import ModelConfig
from quant_assets.settings import Settings
from quant_assets_tests.installation import Installation

MODELS = """
models:
  - {name: four, source: a/b, quantization: {method: int4}, gguf_levels: [F16]}
  - {name: eight, source: a/b, quantization: {method: int8}, gguf_levels: [F16]}
  - {name: half, source: a/b, quantization: {method: fp8}, gguf_levels: [F16]}
"""


def test_the_partitions_of_a_model_hold_the_level_of_its_intent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "models.yaml").write_text(MODELS)
    monkeypatch.setenv("QUANT_ASSETS_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("QUANT_ASSETS_MODELS_FILE", str(tmp_path / "models.yaml"))
    graph = build_definitions(Settings()).resolve_asset_graph()
    levels = {}
    for name in ("four", "eight", "half"):
        partitions = graph.get(dg.AssetKey([name, "gguf_artifacts"])).partitions_def
        assert partitions is not None
        levels[name] = partitions.get_partition_keys()
    assert levels == {"four": ["F16", "Q4_K_M"], "eight": ["F16", "Q8_0"], "half": ["F16"]}


def test_the_source_model_says_what_every_backend_needs(installation: Installation) -> None:
    model = ModelConfig.model_validate(
        {"name": "tiny", "source": "models/tiny-source", "quantization": {"method": "int4"}}
    )
    result = dg.materialize(
        [build_source_model(model)],
        instance=installation.instance,
        resources=installation.definitions.resources,
    )
    (event,) = result.get_asset_materialization_events()
    answers = event.materialization.metadata["quantization"].value
    assert isinstance(answers, dict)
    assert {name: answer["method"] for name, answer in answers.items()} == dict.fromkeys(
        ("pytorch", "vllm", "tensorrt", "llamacpp"), "int4"
    )
    assert answers["llamacpp"]["params"]["level"] == "Q4_K_M"
    assert str(installation.settings.home / "models" / "tiny-source") in answers["vllm"]["launch"]
