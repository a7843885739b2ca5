"""What benchmarks and quality ask of a backend: one cell, one quality result, one set of answers."""

from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

import dagster as dg

from quant_assets.bench.cell import MeasuredCell, run_cell
from quant_assets.bench.matrix import LocatedArtifact
from quant_assets.bench.obedience import ObediencePrompt, ObedienceResult, measure_obedience
from quant_assets.bench.quality import Artifact, QualityResult, QualityStore, measure_quality
from quant_assets.bench.settings import BenchSettings
from quant_assets.bench.variants import Variant
from quant_assets.host.devices import Device
from quant_assets.resources.worker_logs import worker_session
from quant_assets.texts.evaluation import EvaluationText

DEVICE_POOL = "device"
"""The pool of everything that keeps this machine's processor or GPU busy: one step at a time."""

ResourceT = TypeVar("ResourceT")


class ModelBackend(dg.ConfigurableResource[ResourceT]):
    """Software that runs models on this machine, in worker processes.

    `threads`: null means all physical cores. `device`: a device other than `auto` takes precedence
    over that of the benchmark settings.
    """

    threads: int | None = None
    device: Device = "auto"

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
        with worker_session(context) as session:
            return run_cell(
                variant,
                batch_size,
                artifact.path,
                artifact.artifact_id,
                model_name,
                self._settings(settings),
                session=session,
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
        with worker_session(context) as session:
            return measure_quality(
                variant,
                Artifact(artifact.path, artifact.artifact_id),
                Artifact(baseline.path, baseline.artifact_id),
                model_name,
                text,
                store,
                self._settings(settings),
                windows=windows,
                session=session,
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
        with worker_session(context) as session:
            return measure_obedience(
                variant,
                artifact.path,
                artifact.artifact_id,
                model_name,
                prompts,
                results,
                self._settings(settings),
                session=session,
            )

    def _settings(self, settings: BenchSettings) -> BenchSettings:
        """The benchmark settings with this backend's device."""
        if self.device == "auto":
            return settings
        return settings.model_copy(update={"device": self.device})
