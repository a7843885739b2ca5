"""Variants that fail: the others, and all later stages, still run."""

import datetime
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from quant_assets.artifacts.job import JobSpec
from quant_assets.artifacts.manifest import ArtifactFile, ArtifactManifest
from quant_assets.artifacts.store import ArtifactStore
from quant_assets.assets import quality
from quant_assets.assets.benchmarks import build_benchmark_results
from quant_assets.assets.quality import build_variant_quality
from quant_assets.automation.full_run import FullRun
from quant_assets.automation.jobs import range_tags
from quant_assets.bench.cell import MeasuredCell
from quant_assets.bench.jobs import QualityMeasurement
from quant_assets.bench.kv_cache import KvCacheResult
from quant_assets.bench.obedience.measurement import ObedienceResult, check_answers
from quant_assets.bench.obedience.prompts import ObediencePrompt
from quant_assets.bench.probes import LlamaProbe
from quant_assets.bench.quality import QualityResult
from quant_assets.bench.settings import BenchSettings
from quant_assets.bench.subject import Subject
from quant_assets.bench.variants import load_variants
from quant_assets.errors import QuantAssetsError, WorkerError
from quant_assets.models.config import load_models
from quant_assets.resources.failures import clear_failures
from quant_assets.resources.llama_cpp import LlamaCpp
from quant_assets.resources.stores import DataRoot
from quant_assets.resources.torch import Torch
from quant_assets.settings import Settings
from quant_assets_tests.installation import MODELS, VARIANTS, cell

MOMENT = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """A data root whose model `tiny` has the artifacts of two of the three variants."""
    (tmp_path / "models.yaml").write_text(MODELS)
    (tmp_path / "variants.yaml").write_text(VARIANTS)
    monkeypatch.setenv("QUANT_ASSETS_MODELS_FILE", str(tmp_path / "models.yaml"))
    monkeypatch.setenv("QUANT_ASSETS_VARIANTS_FILE", str(tmp_path / "variants.yaml"))
    settings = Settings(home=tmp_path / "home")
    store = ArtifactStore(settings.artifacts)
    for level in ("F16", "Q8_0"):
        job = JobSpec(
            model_name="tiny", source_identity="s", target_format="gguf", level=level,
            library_versions={},
        )  # fmt: skip
        with store.staging(job.job_id) as folder:
            (folder / "m.gguf").write_bytes(b"GGUF")
            manifest = ArtifactManifest(
                job=job, job_id=job.job_id, status="valid", source_provenance="a test",
                files=[ArtifactFile(name="m.gguf", size_bytes=4, sha256="0")], n_parameters=1,
                bits_per_weight=8.5, tensor_types={}, engine={}, validation={}, seconds=1,
                created_at=MOMENT,
            )  # fmt: skip
            store.commit(folder, manifest)
    return settings


def test_a_failing_cell_leaves_the_other_cells_of_its_run(settings: Settings, new_record: Any):
    measured: list[str] = []

    class Backend(LlamaCpp):
        def probe(self) -> LlamaProbe:
            return LlamaProbe(
                device="cpu", cpu_name="c", gpu_name=None, library_versions={}, build_flags=""
            )

        def measure(
            self, context: dg.AssetExecutionContext, subject: Subject, batch_size: int
        ) -> MeasuredCell:
            context.log.info(subject.variant.name)
            name = subject.variant.name
            measured.append(name)
            if name == "f16":
                raise WorkerError("It died.", "It was killed.", "Try again.")
            return MeasuredCell(*new_record(variant=name, batch_size=batch_size, model="tiny"))

    model = next(iter(load_models(settings.models_yaml)))
    variants = load_variants(settings.variants_yaml)
    asset = build_benchmark_results(model, variants, BenchSettings())
    with dg.DagsterInstance.ephemeral() as instance:
        run = dg.materialize(
            [asset],
            instance=instance,
            resources={
                "data_root": DataRoot(home=str(settings.home), data=str(settings.data)),
                "llama_cpp": Backend(),
                "torch": Torch(),
            },
            tags=range_tags([cell("f16", 8), cell("q8_0-kv-hybrid", 8)]),
            raise_on_error=False,
        )
    assert measured == ["f16", "q8_0-kv-hybrid"]
    materialized = [
        event.partition
        for event in run.all_events
        if event.event_type_value == "ASSET_MATERIALIZATION"
    ]
    assert not run.success and materialized == [cell("q8_0-kv-hybrid", 8)]
    (failure,) = [event for event in run.all_events if event.is_step_failure]
    data = failure.step_failure_data.user_failure_data
    assert data is not None and data.metadata["what"].value == "It died."


def test_a_failing_variant_leaves_the_quality_of_the_others(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
):
    asked: list[tuple[str, int]] = []

    class Backend(LlamaCpp):
        def quality(self, _: Any, subject: Subject, *__: Any) -> QualityResult:
            name = subject.variant.name
            if name == "f16":
                raise WorkerError("It died.", "It was killed.", "Try again.")
            measurement = QualityMeasurement(
                perplexity=20.0, perplexity_standard_error=0.1, scored_tokens=255, windows=1,
                context=512, seconds=1.0,
            )  # fmt: skip
            return QualityResult(
                variant=name, model="tiny", artifact_id="a", baseline_artifact_id="b", text="t",
                text_sha256="0", timestamp=MOMENT, measurement=measurement,
            )  # fmt: skip

        def kv_cache_quality(
            self, _: Any, subject: Subject, *__: Any, contexts: Sequence[int], windows: int
        ) -> KvCacheResult:
            measured = [
                QualityMeasurement(
                    perplexity=20.0, perplexity_standard_error=0.1, scored_tokens=255 * windows,
                    windows=windows, context=context, perplexity_ratio=1.02, seconds=1.0,
                )
                for context in contexts
            ]  # fmt: skip
            return KvCacheResult(
                variant=subject.variant.name, model="tiny", artifact_id="a", cache_type_k="q8_0",
                cache_type_v="q4_0", text="t", text_sha256="0", timestamp=MOMENT, contexts=measured,
            )  # fmt: skip

        def obedience(
            self, _: Any, subject: Subject, prompts: Sequence[ObediencePrompt], __: Path
        ) -> ObedienceResult:
            asked.append((subject.variant.name, len(prompts)))
            return check_answers(
                prompts, [prompt.good[0] for prompt in prompts],
                variant=subject.variant.name, model="tiny", artifact_id="a",
            )  # fmt: skip

    monkeypatch.setattr(quality, "evaluation_text", lambda *_: None)
    model = next(iter(load_models(settings.models_yaml)))
    asset = build_variant_quality(model, load_variants(settings.variants_yaml), BenchSettings())
    config = {"windows": 1, "obedience": True, "obedience_prompts": 24}
    with dg.DagsterInstance.ephemeral() as instance:
        run = dg.materialize(
            [asset],
            instance=instance,
            run_config={"ops": {"tiny__variant_quality_results": {"config": config}}},
            resources={
                "data_root": DataRoot(home=str(settings.home), data=str(settings.data)),
                "llama_cpp": Backend(),
                "torch": Torch(),
            },
            tags=range_tags(["f16", "q8_0-kv-hybrid"]),
            raise_on_error=False,
        )
    assert asked == [("q8_0-kv-hybrid", 24)]
    (made,) = [
        event for event in run.all_events if event.event_type_value == "ASSET_MATERIALIZATION"
    ]
    assert not run.success and made.partition == "q8_0-kv-hybrid"
    metadata = made.step_materialization_data.materialization.metadata
    assert metadata["obedience prompts"].value == "24 of 49"
    assert metadata["obedience pass rate"].value == 1.0
    at_2048 = "KV cache at 2048 tokens: perplexity ratio to an F16 cache"
    assert metadata[at_2048].value == 1.02


def test_failing_variants_stop_neither_the_others_nor_the_marts(settings: Settings):
    configured = {"quality": "variant_quality_results", "benchmarks": "benchmark_results"}
    ran: list[str] = []

    def job_of(name: str) -> dg.JobDefinition:
        model, _, kind = name.rpartition("_")
        asset = configured.get(kind)

        @dg.op(name=f"{model}__{asset}" if asset else name, config_schema=dg.Permissive())
        def step() -> None:
            ran.append(name)
            with clear_failures():
                if name in ("tiny_quality", "tiny_benchmarks"):
                    raise WorkerError(f"{name} died.", "It was killed.", "Try again.")

        @dg.job(name=name)
        def job() -> None:
            step()

        return job

    lines: list[str] = []
    config = {"obedience": True, "obedience_prompts": 24}
    with (
        dg.DagsterInstance.ephemeral() as instance,
        pytest.raises(QuantAssetsError) as failed,
    ):
        FullRun(settings, instance, job_of, lines.append).run_all(
            {}, quality=config, measure_again=True
        )
    assert ran == [
        "refresh_listings", "measure_host",
        "tiny_source", "tiny_artifacts", "tiny_quality", "tiny_benchmarks", "tiny_benchmarks",
        "tiny_2_source", "tiny_2_artifacts", "tiny_2_quality",
        "refresh_marts",
    ]  # fmt: skip
    assert failed.value.what == "tiny_quality died."
    assert "also failed: tiny f16, tiny q8_0-kv-hybrid." in failed.value.why
    assert any("obedience on 24 of 49 prompts" in line for line in lines)
    assert any("tiny f16: failed: tiny_benchmarks died." in line for line in lines)
