"""The artifact's way through quantization, the perplexity gate and the store, without workers."""

from pathlib import Path

import pytest

from quant_assets.artifacts.store import ArtifactStore
from quant_assets.errors import CheckFailed
from quant_assets.models.source import SourceModel
from quant_assets.quantize.groupwise import artifact, gate
from quant_assets.quantize.groupwise.artifact import GroupwiseSpec, make_groupwise_artifact
from quant_assets.quantize.groupwise.gate import Checkpoint, CheckpointQuality, PerplexityGate
from quant_assets.quantize.groupwise.job import GroupwiseJob, GroupwiseResult, GroupwiseSettings
from quant_assets.texts.calibration import CalibrationText
from quant_assets.texts.evaluation import EvaluationText


@pytest.fixture
def spec(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> GroupwiseSpec:
    def quantize(job: GroupwiseJob, **_: object) -> GroupwiseResult:
        (job.output / "model.safetensors").write_bytes(b"weights")
        return GroupwiseResult(
            files=["model.safetensors"], bytes=7, expected_bytes=7, architecture="llama",
            n_parameters=14, n_layers=1, bits_per_weight=4.0, tensor_types={"I32": 1},
            calibration_tokens=8, device="cpu", library_versions={}, seconds=1.0,
            seconds_per_layer=1.0, resumed_from_layer=None, peak_rss_bytes=1, peak_vram_bytes=None,
        )  # fmt: skip

    monkeypatch.setattr(artifact, "quantize_groupwise", quantize)
    monkeypatch.setattr(artifact, "check_source", lambda *_: None)
    monkeypatch.setattr(artifact, "check_layout", lambda *_: 1)
    source = SourceModel(name="m", kind="hf", path=tmp_path, identity="s", provenance="here")
    calibration = CalibrationText(name="c", path=tmp_path / "c", sha256="c")
    settings = GroupwiseSettings(format="gptq", samples=1, sequence_length=8)
    return GroupwiseSpec("m", source, settings, calibration)


def measuring(monkeypatch: pytest.MonkeyPatch, own: float) -> list[list[Checkpoint]]:
    """Let a source measure 10, its rounding 12 and the artifact `own`; returns the calls."""
    calls: list[list[Checkpoint]] = []

    def measure(checkpoints: list[Checkpoint], *_: object, **__: object) -> list[CheckpointQuality]:
        calls.append(checkpoints)
        perplexities = [
            12.0 if item.rounding else 10.0 if item.format == "hf" else own for item in checkpoints
        ]
        return [
            CheckpointQuality(
                perplexity=value, standard_error=0.1, scored_tokens=8, generated_text="The"
            )
            for value in perplexities
        ]

    monkeypatch.setattr(gate, "measure_checkpoints", measure)
    return calls


def perplexity_gate(tmp_path: Path) -> PerplexityGate:
    text = EvaluationText(name="t", path=tmp_path / "t", sha256="t")
    return PerplexityGate(text, tmp_path / "cache", threads=1)


def test_a_later_gate_completes_the_manifest(
    spec: GroupwiseSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = measuring(monkeypatch, own=11.0)
    store = ArtifactStore(tmp_path / "store")
    first = make_groupwise_artifact(spec, store, gate=None)
    assert not first.reused and first.manifest.perplexity is None and calls == []
    gated = make_groupwise_artifact(spec, store, gate=perplexity_gate(tmp_path))
    assert gated.reused and gated.folder == first.folder and gated.valid() == gated
    assert gated.manifest.perplexity == 11.0
    assert gated.manifest.validation["ratio_to_source"] == pytest.approx(1.1)
    again = make_groupwise_artifact(spec, store, gate=perplexity_gate(tmp_path))
    assert again.manifest == gated.manifest and len(calls) == 1


def test_measurements_of_the_source_are_cached_across_artifacts(
    spec: GroupwiseSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = measuring(monkeypatch, own=11.0)
    for name in ("one", "two"):
        store = ArtifactStore(tmp_path / name)
        make_groupwise_artifact(spec, store, gate=perplexity_gate(tmp_path))
    assert [len(checkpoints) for checkpoints in calls] == [3, 1]


def test_an_artifact_no_better_than_rounding_is_rejected(
    spec: GroupwiseSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measuring(monkeypatch, own=12.5)
    store = ArtifactStore(tmp_path / "store")
    rejected = make_groupwise_artifact(spec, store, gate=perplexity_gate(tmp_path))
    assert "rounding to nearest" in str(rejected.rejection)
    assert store.find(spec.job.job_id) is None and rejected.folder.exists()
    with pytest.raises(CheckFailed, match="is rejected"):
        rejected.valid()
