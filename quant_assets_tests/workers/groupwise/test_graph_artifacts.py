"""Both formats through the graph on a tiny trained model: built, gated, checked, compared."""

from pathlib import Path

import dagster as dg
import pytest
from typer.testing import CliRunner

from quant_assets.artifacts.manifest import ArtifactManifest
from quant_assets.artifacts.store import ArtifactStore
from quant_assets.bench.quality import QualityStore
from quant_assets.cli.app import app
from quant_assets.errors import CheckFailed, InputError
from quant_assets.formats.group_quantization import GroupQuantization
from quant_assets.quantize.groupwise.gate import GateResult
from quant_assets.quantize.groupwise.job import groupwise_settings
from quant_assets.quantize.groupwise.layout import check_layout
from quant_assets.settings import Settings

# Both quantizers run in separate environments.
pytestmark = pytest.mark.quantizers

Installation = tuple[dg.Definitions, dg.DagsterInstance]
FORMATS = ("gptq", "awq")
CHECKS = ("files_are_as_configured", "perplexity_gate")


def manifest_of(settings: Settings, method: str) -> ArtifactManifest:
    (found,) = (
        manifest
        for manifest in ArtifactStore(settings.artifacts).all()
        if manifest.job.target_format == method
    )
    return found


def evaluation_of(
    instance: dg.DagsterInstance, key: dg.AssetKey, name: str
) -> dg.AssetCheckEvaluation:
    """The latest evaluation of a check."""
    (record,) = instance.event_log_storage.get_asset_check_execution_history(
        dg.AssetCheckKey(key, name), limit=1
    )
    assert record.event is not None and record.event.dagster_event is not None
    return record.event.dagster_event.asset_check_evaluation_data


@pytest.mark.parametrize("method", FORMATS)
def test_better_than_rounding(method: str, installation: Installation, settings: Settings) -> None:
    manifest = manifest_of(settings, method)
    assert manifest.status == "valid"
    measured = {
        name: float(str(manifest.validation[name]))
        for name in ("ratio_to_rounding", "ratio_to_source")
    }
    assert measured["ratio_to_rounding"] < 1
    # A method's loss depends on what the model learned on this processor; the loss of plain rounding
    # on the same tokens provides the scale.
    lost_by_rounding = measured["ratio_to_source"] / measured["ratio_to_rounding"] - 1
    assert lost_by_rounding > 0.05
    assert measured["ratio_to_source"] - 1 < 0.75 * lost_by_rounding
    assert manifest.validation["generated_text"]
    folder = settings.artifacts / manifest.job_id
    assert check_layout(folder) == 3 * 7
    assert sorted(path.name for path in folder.iterdir()) == sorted(
        [*(file.name for file in manifest.files), "manifest.json"]
    )


@pytest.mark.parametrize("method", FORMATS)
def test_the_graph_shows_the_artifact_and_its_checks(
    method: str, installation: Installation, settings: Settings
) -> None:
    _, instance = installation
    key = dg.AssetKey(["tiny", f"{method}_artifacts"])
    assert instance.get_materialized_partitions(key) == {f"{method}-4bit-g32"}
    event = instance.get_latest_materialization_event(key)
    assert event is not None and event.asset_materialization is not None
    shown = event.asset_materialization.metadata
    assert shown["job"].value == manifest_of(settings, method).job_id
    assert shown["calibrated on"].value == "python-reference-second-half"
    assert shown["calibration samples"].value == "64 of 64 tokens"
    assert "No calibration set was named." in str(shown["calibration warning"].value)
    for name in CHECKS:
        evaluation = evaluation_of(instance, key, name)
        assert evaluation.passed, name
    ratio = f"{method}-4bit-g32: perplexity over rounding's"
    assert evaluation.metadata[ratio].value < 1


def test_a_rejected_artifact_fails_its_check_and_is_kept_apart(
    installation: Installation, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    definitions, instance = installation
    gated = GateResult(
        text="a text", scored_tokens=1, perplexity=9.0, source_perplexity=2.0,
        rounding_perplexity=3.0, generated_text="The", rejection="Worse than rounding.",
    )  # fmt: skip
    monkeypatch.setattr(
        "quant_assets.quantize.groupwise.gate.PerplexityGate.check", lambda *_, **__: gated
    )
    before = {manifest.job_id for manifest in ArtifactStore(settings.artifacts).all()}
    result = definitions.resolve_job_def("tiny_awq").execute_in_process(
        instance=instance,
        partition_key="awq-4bit-g32",
        run_config={
            "ops": {"tiny__awq_artifacts": {"config": {"samples": 8, "sequence_length": 64}}}
        },
        raise_on_error=False,
    )
    assert not result.success
    (failure,) = result.get_step_failure_events()
    assert "Worse than rounding." in str(failure.step_failure_data)
    assert not result.get_asset_materialization_events()
    key = dg.AssetKey(["tiny", "awq_artifacts"])
    seen = {name: evaluation_of(instance, key, name) for name in CHECKS}
    assert seen["files_are_as_configured"].passed
    assert not seen["perplexity_gate"].passed
    assert seen["perplexity_gate"].metadata["awq-4bit-g32"].value == "Worse than rounding."
    store = ArtifactStore(settings.artifacts)
    assert {manifest.job_id for manifest in store.all()} == before
    (kept,) = (store.root / ".rejected").iterdir()
    assert ArtifactManifest.model_validate_json((kept / "manifest.json").read_bytes()).rejection


def test_quality_is_measured_on_the_tokens_of_the_baseline(
    installation: Installation, settings: Settings
) -> None:
    definitions, instance = installation
    result = definitions.resolve_job_def("tiny_quality").execute_in_process(
        instance=instance,
        partition_key="awq-4bit-g32",
        run_config={
            "ops": {"tiny__variant_quality_results": {"config": {"windows": 1, "obedience": False}}}
        },
    )
    assert result.success
    (quality,) = QualityStore(settings.results, settings.cache).all()
    assert quality.variant == "awq-4bit-g32"
    assert quality.measurement.top1_agreement and quality.measurement.top1_agreement > 0.5
    assert quality.measurement.kl_divergence and 0 < quality.measurement.kl_divergence < 0.5


@pytest.mark.parametrize("method", FORMATS)
def test_the_command_finds_what_the_graph_made(
    method: str, installation: Installation, settings: Settings, trained: Path
) -> None:
    run = CliRunner().invoke(
        app,
        [
            "quantize", str(trained), "--to", method, "--group-size", "32",
            "--calibration-samples", "64", "--sequence-length", "64", "--device", "cpu",
            "--output-dir", str(settings.artifacts), "--format", "json",
        ],
    )  # fmt: skip
    assert run.exit_code == 0, run.exception
    found = ArtifactManifest.model_validate_json(run.stdout)
    assert found == manifest_of(settings, method)
    assert "Python's language reference is used" in run.stderr
    assert "warning: No calibration set was named." in run.stderr
    assert "No calibration set was named." in found.engine["calibration remarks"]


def test_validate_loads_it_and_notices_a_change(
    installation: Installation, settings: Settings, tmp_path: Path
) -> None:
    import shutil

    folder = settings.artifacts / manifest_of(settings, "awq").job_id
    run = CliRunner().invoke(app, ["validate", str(folder), "--verbosity", "quiet"])
    assert run.exit_code == 0, run.exception
    for answer in ("match the manifest's checksums", "21 packed matrices", "perplexity: "):
        assert answer in run.stdout
    changed = tmp_path / "changed"
    shutil.copytree(folder, changed)
    content = bytearray((changed / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (changed / "model.safetensors").write_bytes(content)
    run = CliRunner().invoke(app, ["validate", str(changed)])
    assert isinstance(run.exception, CheckFailed)
    assert "model.safetensors is changed" in run.exception.why


def test_a_gguf_source_is_refused_with_the_way_to_go(
    installation: Installation, settings: Settings
) -> None:
    (file,) = settings.artifacts.glob("*gguf-f16*/*.gguf")
    run = CliRunner().invoke(app, ["quantize", str(file), "--to", "gptq", "--group-size", "32"])
    assert isinstance(run.exception, InputError)
    assert "quant-assets convert" in run.exception.next_step
    chosen = groupwise_settings(GroupQuantization(method="gptq", bits=4, group_size=32))
    assert chosen.engine == "gptqmodel"
