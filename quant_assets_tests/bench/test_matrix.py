import datetime
from pathlib import Path
from typing import Any

import pytest

from quant_assets.artifacts.job import JobSpec
from quant_assets.artifacts.manifest import ArtifactFile, ArtifactManifest
from quant_assets.artifacts.store import ArtifactStore
from quant_assets.bench.artifact_finder import LocatedArtifact, artifact_finder
from quant_assets.bench.cell import MeasuredCell
from quant_assets.bench.matrix import plan_matrix, run_matrix
from quant_assets.bench.results import ResultStore
from quant_assets.bench.settings import BenchSettings
from quant_assets.bench.subject import Subject
from quant_assets.bench.variants import Variant
from quant_assets.errors import WorkerError

SETTINGS = BenchSettings(batch_sizes=(1, 4), prompt_tokens=8, generated_tokens=4, runs=3)
VARIANTS = {
    name: Variant(name=name, format="gguf", level=level)
    for name, level in (("a", "Q8_0"), ("b", "Q4_0"), ("c", "F16"))
}


def find(variant: Variant) -> LocatedArtifact | None:
    if variant.level == "F16":
        return None
    return LocatedArtifact(Path(f"{variant.level}.gguf"), f"id-{variant.level}", 10**8)


class Machine:
    """Stands in for the worker; fails in the `failing` cells."""

    def __init__(self, new_record: Any, failing: set[tuple[str, int]] | None = None) -> None:
        self._new_record = new_record
        self._failing = failing or set()
        self.ran: list[tuple[str, int]] = []

    def run(self, subject: Subject, batch_size: int) -> MeasuredCell:
        variant = subject.variant
        self.ran.append((variant.name, batch_size))
        if (variant.name, batch_size) in self._failing:
            raise WorkerError("It died.", "It was killed.", "Try again.")
        return MeasuredCell(
            *self._new_record(
                [2000.0] * 3,
                variant=variant.name,
                batch_size=batch_size,
                model=subject.model_name,
                artifact_id=subject.artifact.artifact_id,
                settings=subject.settings,
            )
        )


def _run(store: ResultStore, machine: Machine, **options: Any) -> list[Any]:
    plan = plan_matrix(VARIANTS, SETTINGS, find, store, "m")
    return list(run_matrix(plan, VARIANTS, SETTINGS, find, store, "m", machine.run, **options))


def test_missing_artifacts_are_skipped_with_a_reason(tmp_path: Path, new_record: Any) -> None:
    outcomes = _run(ResultStore(tmp_path), Machine(new_record))
    skipped = [item.cell for item in outcomes if item.record is None]
    assert [(cell.variant, cell.batch_size) for cell in skipped] == [("c", 1), ("c", 4)]
    assert skipped[0].skipped == "no gguf artifact of level F16"
    assert len(list(ResultStore(tmp_path).records())) == 4


def test_a_failing_cell_does_not_stop_the_others_and_is_all_that_runs_again(
    tmp_path: Path, new_record: Any
) -> None:
    store = ResultStore(tmp_path)
    first = Machine(new_record, failing={("a", 4)})
    outcomes = _run(store, first)
    assert first.ran == [("a", 1), ("a", 4), ("b", 1), ("b", 4)]
    assert [item.cell.batch_size for item in outcomes if item.error] == [4]
    second = Machine(new_record)
    outcomes = _run(store, second)
    assert second.ran == [("a", 4)]
    assert sum(item.resumed for item in outcomes) == 3
    assert len(list(store.records())) == 4


def test_an_interrupted_matrix_resumes_at_the_next_cell(tmp_path: Path, new_record: Any) -> None:
    store = ResultStore(tmp_path)
    plan = plan_matrix(VARIANTS, SETTINGS, find, store, "m")
    interrupted = Machine(new_record)
    cells = run_matrix(plan, VARIANTS, SETTINGS, find, store, "m", interrupted.run)
    next(cells), next(cells)
    cells.close()
    again = Machine(new_record)
    _run(store, again)
    assert again.ran == [("b", 1), ("b", 4)]


def test_a_finished_matrix_runs_again_and_restart_drops_the_journal(
    tmp_path: Path, new_record: Any
) -> None:
    store = ResultStore(tmp_path)
    _run(store, Machine(new_record))
    repeated = Machine(new_record, failing={("b", 4)})
    _run(store, repeated)
    assert len(repeated.ran) == 4
    restarted = Machine(new_record)
    _run(store, restarted, restart=True)
    assert len(restarted.ran) == 4


def test_the_estimate_is_the_last_record_or_the_weights(tmp_path: Path, new_record: Any) -> None:
    store = ResultStore(tmp_path)
    guessed = plan_matrix(VARIANTS, SETTINGS, find, store, "m")[0]
    assert guessed.estimate_basis == "the size of the weights"
    assert guessed.estimate_s and guessed.estimate_s > 0
    _run(store, Machine(new_record))
    known = plan_matrix(VARIANTS, SETTINGS, find, store, "m")[0]
    assert known.estimate_basis == "the last record"
    assert known.estimate_s == pytest.approx(6 * 2.0 + 0.05)


def test_the_newest_valid_artifact_of_a_level_is_found(tmp_path: Path) -> None:
    store = ArtifactStore(tmp_path)
    for day, source in ((1, "old"), (2, "new")):
        job = JobSpec(
            model_name="m", source_identity=source, target_format="gguf", level="Q4_0",
            library_versions={},
        )  # fmt: skip
        with store.staging(job.job_id) as folder:
            (folder / "m.gguf").write_bytes(b"1234")
            store.commit(folder, _manifest(job, day))
    found = artifact_finder(store, "m")(VARIANTS["b"])
    assert found is not None
    assert found.path.read_bytes() == b"1234"
    assert found.size_bytes == 4
    newest = max(store.all(), key=lambda manifest: manifest.created_at)
    assert found.artifact_id == newest.job_id and newest.job.source_identity == "new"
    assert artifact_finder(store, "m")(VARIANTS["a"]) is None
    assert artifact_finder(store, "another")(VARIANTS["b"]) is None


def _manifest(job: JobSpec, day: int) -> ArtifactManifest:
    return ArtifactManifest(
        job=job,
        job_id=job.job_id,
        status="valid",
        source_provenance="made for a test",
        files=[ArtifactFile(name="m.gguf", size_bytes=4, sha256="0" * 64)],
        n_parameters=1,
        bits_per_weight=4.5,
        tensor_types={},
        engine={},
        validation={},
        seconds=1.0,
        created_at=datetime.datetime(2026, 1, day, tzinfo=datetime.UTC),
    )
