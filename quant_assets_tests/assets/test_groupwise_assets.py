"""GPTQ and AWQ in the graph without their worker environments."""

from pathlib import Path
from types import SimpleNamespace

import dagster as dg
import pytest

from quant_assets.assets.groupwise import build_groupwise_artifacts
from quant_assets.bench.variants import Variant
from quant_assets.errors import InputError
from quant_assets.models.config import ModelConfig
from quant_assets.quantize.groupwise.artifact import GroupwiseSpec
from quant_assets.quantize.groupwise.calibration import CalibrationChoice
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


def test_the_calibration_of_the_model_list_is_used_unless_the_run_names_one(
    installation: Installation, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[GroupwiseSpec, CalibrationChoice]] = []

    def stop(spec: GroupwiseSpec, choice: CalibrationChoice, *_: object, **__: object) -> None:
        seen.append((spec, choice))
        raise InputError("Stopped.", "The test has seen enough.", "Nothing.")

    # The environments of GPTQ and AWQ are not needed for what is asked of them.
    monkeypatch.setattr(
        "quant_assets.resources.torch.probe_torch", lambda _: SimpleNamespace(text="no torch")
    )
    monkeypatch.setattr("quant_assets.resources.torch.fitted_spec", stop)
    (installation.settings.home / "domain.txt").write_text("words of the model's own domain. " * 50)
    calibration = {"dataset": "domain.txt", "num_samples": 7, "max_length": 32}
    model = ModelConfig.model_validate(
        {
            "name": "tiny",
            "source": "models/tiny-source",
            "quantization": {"method": "int4", "calibration": calibration},
        }
    )
    artifacts = build_groupwise_artifacts(
        model,
        "gptq",
        {"gptq-4bit-g32": Variant(name="gptq-4bit-g32", format="gptq", level="4bit-g32")},
    )
    assert "calibrated on domain.txt" in artifacts.descriptions_by_key[artifacts.key]
    for config in ({}, {"samples": 5}):
        dg.materialize(
            [artifacts],
            partition_key="gptq-4bit-g32",
            instance=installation.instance,
            resources=installation.definitions.resources,
            run_config={"ops": {artifacts.op.name: {"config": config}}},
            raise_on_error=False,
        )
    assert [spec.calibration.name for spec, _ in seen] == ["domain.txt", "domain.txt"]
    assert [choice for _, choice in seen] == [
        CalibrationChoice(samples=7, sequence_length=32),
        CalibrationChoice(samples=5, sequence_length=32),
    ]
