"""The `quantization:` block of a model, in the graph."""

from pathlib import Path

import dagster as dg
import pytest

from quant_assets.assets.gguf import build_importance_matrix
from quant_assets.assets.source_models import build_source_model
from quant_assets.definitions import build_definitions
from quant_assets.errors import InputError
from quant_assets.models.config import ModelConfig
from quant_assets.quantize.configured_intent import configured_dataset
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


def test_the_importance_matrix_is_measured_as_the_block_says(installation: Installation) -> None:
    (installation.settings.home / "my_texts.txt").write_text("a few words of my own domain. " * 200)
    model = ModelConfig.model_validate(
        {
            "name": "tiny",
            "source": "models/tiny-source",
            "importance_matrix": True,
            "quantization": {
                "method": "int4",
                "calibration": {"dataset": "my_texts.txt", "num_samples": 3, "max_length": 16},
            },
        }
    )
    result = dg.materialize(
        [build_importance_matrix(model)],
        instance=installation.instance,
        resources=installation.definitions.resources,
    )
    (event,) = result.get_asset_materialization_events()
    metadata = event.materialization.metadata
    assert metadata["calibration text"].value == "my_texts.txt"
    assert metadata["tokens"].value == 3 * 16


@pytest.mark.parametrize(
    ("calibration", "match"),
    [
        ({"dataset": "/etc/hostname"}, "outside the data root"),
        ({"dataset": "../elsewhere.txt"}, "leads out of"),
        ({"dataset": "hub:a/b", "split": "validation"}, "split 'validation'"),
    ],
)
def test_a_calibration_stays_inside_the_data_root_and_the_training_split(
    calibration: dict[str, str], match: str, installation: Installation
) -> None:
    model = ModelConfig.model_validate(
        {"name": "a", "source": "a/b", "quantization": {"calibration": calibration}}
    )
    with pytest.raises(InputError, match=match):
        configured_dataset(model, installation.settings)
