"""The llama.cpp backend: quantizes and measures GGUF files in worker processes."""

from collections.abc import Sequence
from pathlib import Path

import dagster as dg

from quant_assets.bench.cell import MeasuredCell, run_cell
from quant_assets.bench.evaluation_text import EvaluationText
from quant_assets.bench.matrix import LocatedArtifact
from quant_assets.bench.obedience import ObediencePrompt, ObedienceResult, measure_obedience
from quant_assets.bench.quality import Artifact, QualityResult, QualityStore, measure_quality
from quant_assets.bench.settings import BenchSettings
from quant_assets.bench.variants import Variant
from quant_assets.models.source import SourceModel
from quant_assets.quantize.calibration import CalibrationText
from quant_assets.quantize.gguf_artifact import MadeArtifact, make_gguf_artifact
from quant_assets.quantize.importance_matrix import ImportanceMatrix, model_importance_matrix
from quant_assets.quantize.store import ArtifactStore
from quant_assets.resources.worker_logs import worker_environment

DEVICE_POOL = "device"
"""The pool of everything that keeps this machine's processor or GPU busy: one step at a time."""


class LlamaCpp(dg.ConfigurableResource["LlamaCpp"]):
    """llama.cpp on this machine. `threads`: null means all physical cores."""

    threads: int | None = None

    def quantize(
        self,
        context: dg.AssetExecutionContext,
        model_name: str,
        source: SourceModel,
        level: str,
        store: ArtifactStore,
        imatrix: ImportanceMatrix | None,
    ) -> MadeArtifact:
        """The artifact of a level, made unless the store has it."""
        with worker_environment(context) as extra_env:
            return make_gguf_artifact(
                model_name,
                source,
                level,
                store,
                imatrix=imatrix,
                threads=self.threads,
                extra_env=extra_env,
            )

    def importance_matrix(
        self,
        context: dg.AssetExecutionContext,
        model_name: str,
        source: SourceModel,
        folder: Path,
        calibration: CalibrationText,
    ) -> ImportanceMatrix:
        """The importance matrix of a source, measured unless `folder` has it."""
        with worker_environment(context) as extra_env:
            return model_importance_matrix(
                model_name,
                source,
                calibration,
                folder,
                threads=self.threads,
                extra_env=extra_env,
            )

    def measure(
        self,
        context: dg.AssetExecutionContext,
        variant: Variant,
        batch_size: int,
        artifact: LocatedArtifact,
        model_name: str,
        settings: BenchSettings,
    ) -> MeasuredCell:
        """One benchmark cell, alone among the benchmarks of this machine."""
        with worker_environment(context) as extra_env:
            return run_cell(
                variant,
                batch_size,
                artifact.path,
                artifact.artifact_id,
                model_name,
                settings,
                extra_env=extra_env,
            )

    def quality(
        self,
        context: dg.AssetExecutionContext,
        variant: Variant,
        artifact: LocatedArtifact,
        baseline: LocatedArtifact,
        model_name: str,
        text: EvaluationText,
        store: QualityStore,
        settings: BenchSettings,
        windows: int,
    ) -> QualityResult:
        """Perplexity and divergence from the baseline, measured unless the store has them."""
        with worker_environment(context) as extra_env:
            return measure_quality(
                variant,
                Artifact(artifact.path, artifact.artifact_id),
                Artifact(baseline.path, baseline.artifact_id),
                model_name,
                text,
                store,
                settings,
                windows=windows,
                extra_env=extra_env,
            )

    def obedience(
        self,
        context: dg.AssetExecutionContext,
        variant: Variant,
        artifact: LocatedArtifact,
        model_name: str,
        prompts: Sequence[ObediencePrompt],
        results: Path,
        settings: BenchSettings,
    ) -> ObedienceResult:
        """The answers to all instructions, judged; measured unless `results` has them."""
        with worker_environment(context) as extra_env:
            return measure_obedience(
                variant,
                artifact.path,
                artifact.artifact_id,
                model_name,
                prompts,
                results,
                settings,
                extra_env=extra_env,
            )
