"""GPTQ and AWQ in the graph without their worker environments."""

from pathlib import Path

import dagster as dg
import pytest

from quant_assets.assets.groupwise import build_groupwise_artifacts
from quant_assets.bench.variants import Variant
from quant_assets.models.config import ModelConfig
from quant_assets_tests.installation import Installation


def test_a_missing_environment_fails_with_the_command_that_creates_it(
    installation: Installation, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("quant_assets.processes.environments.PROJECT_ROOT", tmp_path)
    artifacts = build_groupwise_artifacts(
        ModelConfig(name="tiny", source="models/tiny-source"),
        "gptq",
        {"gptq-4bit-g32": Variant(name="gptq-4bit-g32", format="gptq", level="4bit-g32")},
    )
    result = dg.materialize(
        [artifacts],
        partition_key="gptq-4bit-g32",
        instance=installation.instance,
        resources=installation.definitions.resources,
        raise_on_error=False,
    )
    assert not result.success
    (failure,) = result.get_step_failure_events()
    data = failure.step_failure_data.user_failure_data
    assert data is not None
    assert "'gptq' does not exist" in str(data.metadata["what"].value)
    assert "make setup-groupwise" in str(data.metadata["what to do next"].value)


def test_without_variants_there_is_no_asset(installation: Installation) -> None:
    keys = {
        key.to_user_string()
        for key in installation.definitions.resolve_asset_graph().get_all_asset_keys()
    }
    assert "tiny/gguf_artifacts" in keys
    assert not {"tiny/gptq_artifacts", "tiny/awq_artifacts"} & keys
