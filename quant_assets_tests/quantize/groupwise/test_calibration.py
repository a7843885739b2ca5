"""The size of calibration: the standard of the field, fewer samples where they do not fit."""

from dataclasses import replace
from pathlib import Path

import pytest

from quant_assets.artifacts.job import JobSpec
from quant_assets.artifacts.manifest import ArtifactFile, ArtifactManifest
from quant_assets.artifacts.store import ArtifactStore
from quant_assets.errors import InputError, ResourceError
from quant_assets.formats.artifact_formats import GroupwiseFormat
from quant_assets.formats.group_quantization import group_quantization
from quant_assets.models.inspection import ModelShape, inspect_model
from quant_assets.models.source import resolve_source
from quant_assets.quantize.groupwise import calibration
from quant_assets.quantize.groupwise.artifact import GroupwiseSpec
from quant_assets.quantize.groupwise.calibration import (
    CalibrationChoice,
    TokenCount,
    fitted_spec,
    size_for_text,
)
from quant_assets.quantize.groupwise.job import (
    CalibrationSize,
    groupwise_settings,
    memory_needed,
)
from quant_assets.settings import Settings
from quant_assets.texts.calibration import CalibrationText
from quant_assets_tests.models.tiny_models import make_model, tokenizer_model

UNNAMED = CalibrationChoice()
LONG = 10_000_000


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model") / "tiny"
    return make_model(folder, "qwen3", tokenizer_model(), max_position_embeddings=4096)


@pytest.fixture
def spec(folder: Path, tmp_path: Path) -> GroupwiseSpec:
    source = resolve_source(str(folder), Settings(home=tmp_path / "home"))
    text = CalibrationText(name="words", path=tmp_path / "words.txt", sha256="w")
    settings = groupwise_settings(group_quantization("gptq", 4, 64))
    return GroupwiseSpec("tiny", source, settings, text)


@pytest.fixture
def store(tmp_path: Path) -> ArtifactStore:
    return ArtifactStore(tmp_path / "store")


def fit(
    spec: GroupwiseSpec,
    store: ArtifactStore,
    choice: CalibrationChoice = UNNAMED,
    *,
    resume: bool = True,
) -> GroupwiseSpec:
    return fitted_spec(spec, choice, store, cache=store.root / "cache", resume=resume)


def tokens(monkeypatch: pytest.MonkeyPatch, n_tokens: int) -> list[object]:
    """Let the text have `n_tokens`; returns the jobs that count them."""
    jobs: list[object] = []

    def count(_: str, job: object, *__: object, **___: object) -> TokenCount:
        jobs.append(job)
        return TokenCount(n_tokens=n_tokens)

    monkeypatch.setattr(calibration, "run_worker", count)
    return jobs


def memory(monkeypatch: pytest.MonkeyPatch, spec: GroupwiseSpec, samples: int) -> None:
    """Let this machine have memory for `samples` of 2048 tokens, and slightly more."""
    shape = inspect_model(spec.source.path)
    needed = memory_needed(shape, "gptq", CalibrationSize(samples, 2048))
    monkeypatch.setattr(calibration, "available_memory", lambda: int(needed * 1.12))


def keep(store: ArtifactStore, job: JobSpec) -> None:
    """Put a finished artifact of the job into the store."""
    with store.staging(job.job_id) as staging:
        (staging / "model.safetensors").write_bytes(b"weights")
        manifest = ArtifactManifest(
            job=job, job_id=job.job_id, status="valid", source_provenance="here",
            files=[ArtifactFile(name="model.safetensors", size_bytes=7, sha256="-")],
            n_parameters=1, bits_per_weight=4.0, tensor_types={}, engine={}, validation={},
            seconds=1.0, created_at="2026-01-01T00:00:00Z",
        )  # fmt: skip
        store.commit(staging, manifest)


@pytest.mark.parametrize(("method", "size"), [("gptq", (128, 2048)), ("awq", (128, 512))])
def test_the_standard_where_everything_allows_it(
    method: GroupwiseFormat, size: tuple[int, int]
) -> None:
    assert size_for_text(method, UNNAMED, None, LONG, "words") == (size, [])
    settings = groupwise_settings(group_quantization(method, 4, 128))
    assert settings.calibration_size == size


def test_a_short_text_gives_fewer_samples_then_a_shorter_one() -> None:
    size, reasons = size_for_text("gptq", UNNAMED, None, 41 * 2048 + 5, "words")
    assert size == (41, 2048)
    assert reasons == ["the text words has 83,973 tokens"]
    assert size_for_text("gptq", UNNAMED, None, 300, "words")[0] == (1, 300)
    with pytest.raises(InputError, match="too short"):
        size_for_text("gptq", UNNAMED, None, 7, "words")


def test_the_context_of_the_model_shortens_samples() -> None:
    size, reasons = size_for_text("gptq", UNNAMED, 1024, LONG, "words")
    assert size == (128, 1024) and reasons == ["the model takes at most 1024 tokens"]
    assert size_for_text("awq", UNNAMED, 1024, LONG, "words") == ((128, 512), [])


def test_named_numbers_are_kept_or_refused() -> None:
    few = CalibrationChoice(samples=64)
    assert size_for_text("gptq", few, None, 64 * 1000, "words")[0] == (64, 1000)
    short = CalibrationChoice(sequence_length=256)
    assert size_for_text("gptq", short, None, 10 * 256, "words")[0] == (10, 256)
    both = CalibrationChoice(samples=200, sequence_length=4096)
    assert size_for_text("gptq", both, 8192, None, "words") == ((200, 4096), [])
    with pytest.raises(InputError, match="too short") as caught:
        size_for_text("gptq", short, None, 255, "words")
    assert "--sequence-length" in caught.value.next_step
    with pytest.raises(InputError, match="exceed the model's context") as caught:
        size_for_text("gptq", both, 2048, None, "words")
    assert "--sequence-length 2048" in caught.value.next_step


def test_the_job_names_what_is_used_and_the_user_is_told_why(
    spec: GroupwiseSpec, store: ArtifactStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted = tokens(monkeypatch, 50 * 2048)
    memory(monkeypatch, spec, samples=12)
    fitted = fit(spec, store)
    assert fitted.settings.calibration_size == (12, 2048)
    assert fitted.job.parameters["samples"] == 12
    assert fitted.job.job_id != spec.job.job_id
    (remark,) = fitted.remarks
    assert "12 samples of 2048 tokens instead of 128 samples of 2048 tokens" in remark
    assert "has 102,400 tokens" in remark and "50 samples of 2048 tokens need about" in remark
    # The text is counted once.
    assert fit(spec, store) == fitted and len(counted) == 1


def test_enough_of_everything_needs_no_remark(
    spec: GroupwiseSpec, store: ArtifactStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens(monkeypatch, LONG)
    memory(monkeypatch, spec, samples=128)
    assert fit(spec, store) == spec
    warned = replace(
        spec, calibration=spec.calibration.model_copy(update={"warning": "Not named."})
    )
    assert fit(warned, store).remarks == ("Not named.",)


def test_named_numbers_that_exceed_memory_are_refused_unless_they_are_done(
    spec: GroupwiseSpec, store: ArtifactStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted = tokens(monkeypatch, LONG)
    memory(monkeypatch, spec, samples=16)
    named = CalibrationChoice(samples=100, sequence_length=2048)
    with pytest.raises(ResourceError, match="100 samples of 2048 tokens does not fit") as caught:
        fit(spec, store, named)
    assert "--calibration-samples" in caught.value.next_step
    done = spec.with_size(CalibrationSize(100, 2048))
    keep(store, done.job)
    assert fit(spec, store, named) == done and counted == []
    # A named number of samples is kept; their length is not named, so it is reduced.
    halved = fit(spec, store, CalibrationChoice(samples=90)).settings
    assert halved.samples == 90 and halved.sequence_length < 2048


def test_a_finished_artifact_of_more_samples_needs_no_memory(
    spec: GroupwiseSpec, store: ArtifactStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens(monkeypatch, LONG)
    memory(monkeypatch, spec, samples=16)
    keep(store, spec.with_size(CalibrationSize(64, 2048)).job)
    assert fit(spec, store).settings.samples == 64


def test_an_interrupted_run_is_resumed_when_more_memory_is_free(
    spec: GroupwiseSpec, store: ArtifactStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens(monkeypatch, LONG)
    memory(monkeypatch, spec, samples=32)
    begun = fit(spec, store)
    work = store.staging_folder(begun.job.job_id) / "work"
    work.mkdir(parents=True)
    memory(monkeypatch, spec, samples=128)
    assert fit(spec, store).settings.samples == 128, "no layer was finished"
    (work / "journal.jsonl").write_text("{}\n")
    resumed = fit(spec, store)
    assert resumed.settings.samples == 32 and "is resumed" in resumed.remarks[0]
    assert fit(spec, store, resume=False).settings.samples == 128


def test_memory_grows_with_tokens_and_with_what_a_method_keeps() -> None:
    """A model of 7B parameters: hidden states of 262,144 tokens alone take 4.3 GB."""
    shape = ModelShape(
        architecture="llama", n_layers=32, hidden_size=4096, intermediate_size=11008, n_heads=32,
        kv_heads_by_layer=(32,) * 32, head_dim_k=128, head_dim_v=128, vocab_size=32000,
        n_parameters=6_738_415_616, n_linear_parameters=6_476_005_376,
    )  # fmt: skip
    gptq, awq = CalibrationSize(128, 2048), CalibrationSize(128, 512)
    states = 128 * 2048 * 4096 * 4
    assert memory_needed(shape, "gptq", gptq) > 3 * states
    assert memory_needed(shape, "awq", awq) > memory_needed(shape, "gptq", awq)
    less = memory_needed(shape, "gptq", CalibrationSize(64, 2048))
    assert memory_needed(shape, "gptq", gptq) - less == 64 * 2048 * 4 * 4096 * 4
