"""The artifact store: complete artifacts or none."""

import datetime
from pathlib import Path

import pytest

from quant_assets.artifacts.job import JobSpec
from quant_assets.artifacts.manifest import ArtifactFile, ArtifactManifest
from quant_assets.artifacts.store import ArtifactStore
from quant_assets.models.identity import sha256_of


def job(**changes: object) -> JobSpec:
    fields: dict[str, object] = {
        "model_name": "tiny",
        "source_identity": "abc",
        "target_format": "gguf",
        "level": "Q4_0",
        "library_versions": {"llama-cpp-python": "0.3.36"},
    }
    return JobSpec.model_validate({**fields, **changes})


def commit(store: ArtifactStore, spec: JobSpec, *, status: str = "valid") -> Path:
    with store.staging(spec.job_id) as staging:
        model = staging / "model.gguf"
        model.write_bytes(b"weights")
        (staging / "model.gguf.part.journal").write_text("left over")
        manifest = ArtifactManifest.model_validate(
            {
                "job": spec,
                "job_id": spec.job_id,
                "status": status,
                "source_provenance": "made here",
                "files": [ArtifactFile(name="model.gguf", size_bytes=7, sha256=sha256_of(model))],
                "n_parameters": 14,
                "bits_per_weight": 4.0,
                "tensor_types": {"Q4_0": 1},
                "engine": {},
                "validation": {},
                "seconds": 1.0,
                "created_at": datetime.datetime.now(datetime.UTC),
            }
        )
        return store.commit(staging, manifest)


@pytest.mark.parametrize(
    "change",
    [
        {"model_name": "other"},
        {"source_identity": "abd"},
        {"level": "Q8_0"},
        {"parameters": {"group_size": 64}},
        {"calibration_identity": "text"},
        {"library_versions": {"llama-cpp-python": "0.3.37"}},
    ],
)
def test_anything_that_decides_the_bytes_changes_the_job_id(change: dict[str, object]):
    assert job(**change).job_id != job().job_id
    assert job(**change).job_id == job(**change).job_id


def test_a_committed_artifact_is_found_complete(tmp_path: Path):
    store = ArtifactStore(tmp_path)
    folder = commit(store, job())
    assert sorted(path.name for path in folder.iterdir()) == ["manifest.json", "model.gguf"]
    found = store.find(job().job_id, verify_content=True)
    assert found is not None
    assert found.job == job()
    assert [manifest.job_id for manifest in store.all()] == [job().job_id]


def test_damage_is_noticed(tmp_path: Path):
    store = ArtifactStore(tmp_path)
    folder = commit(store, job())
    (folder / "model.gguf").write_bytes(b"weightz")
    assert store.find(job().job_id) is not None, "the size is still right"
    assert store.find(job().job_id, verify_content=True) is None
    (folder / "model.gguf").write_bytes(b"weight")
    assert store.find(job().job_id) is None
    assert store.all() == []


def test_an_uncommitted_artifact_is_not_found(tmp_path: Path):
    store = ArtifactStore(tmp_path)
    with store.staging(job().job_id) as staging:
        (staging / "model.gguf").write_bytes(b"weights")
    assert store.find(job().job_id) is None
    with store.staging(job().job_id) as staging:
        assert (staging / "model.gguf").exists(), "a later run of the same job can resume"


def test_a_rejected_artifact_is_kept_apart(tmp_path: Path):
    store = ArtifactStore(tmp_path)
    folder = commit(store, job(), status="rejected")
    assert (folder / "manifest.json").exists()
    assert store.find(job().job_id) is None
    assert store.all() == []


def test_an_artifact_that_fails_its_gate_later_is_moved(tmp_path: Path):
    store = ArtifactStore(tmp_path)
    folder = commit(store, job())
    found = store.find(job().job_id)
    assert found is not None
    assert store.replace_manifest(found.model_copy(update={"perplexity": 9.0})) == folder
    gated = store.find(job().job_id)
    assert gated is not None and gated.perplexity == 9.0
    failed = gated.model_copy(update={"status": "rejected", "rejection": "Worse than rounding."})
    kept = store.replace_manifest(failed)
    assert store.find(job().job_id) is None and not folder.exists()
    assert (kept / "model.gguf").read_bytes() == b"weights"
