"""The interface of model backends: measure a benchmark cell, quality, or obedience."""

from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

import dagster as dg

from quant_assets.bench.artifact_finder import LocatedArtifact
from quant_assets.bench.cell import MeasuredCell, run_cell
from quant_assets.bench.kv_cache import KvCacheResult, measure_kv_cache
from quant_assets.bench.obedience.measurement import ObedienceResult, measure_obedience
from quant_assets.bench.obedience.prompts import ObediencePrompt
from quant_assets.bench.quality import QualityResult, QualityStore, measure_quality
from quant_assets.bench.subject import Subject
from quant_assets.host.devices import Device
from quant_assets.resources.worker_logs import worker_session
from quant_assets.texts.evaluation import EvaluationText

ResourceT = TypeVar("ResourceT")


class ModelBackend(dg.ConfigurableResource[ResourceT]):
    """Software that runs models on this machine, in worker processes.

    `threads`: null means all physical cores. `device`: anything but `auto` overrides the device of
    the benchmark settings.
    """

    threads: int | None = None
    device: Device = "auto"

    def measure(
        self, context: dg.AssetExecutionContext, subject: Subject, batch_size: int
    ) -> MeasuredCell:
        """Measure one benchmark cell; no other benchmark runs on this machine meanwhile."""
        with worker_session(context) as session:
            return run_cell(self._on_device(subject), batch_size, session=session)

    def quality(
        self,
        context: dg.AssetExecutionContext,
        subject: Subject,
        baseline: LocatedArtifact,
        text: EvaluationText,
        store: QualityStore,
        windows: int,
    ) -> QualityResult:
        """Perplexity and divergence from the baseline; measured unless the store has them."""
        with worker_session(context) as session:
            return measure_quality(
                self._on_device(subject),
                baseline,
                text,
                store,
                windows=windows,
                session=session,
            )

    def kv_cache_quality(
        self,
        context: dg.AssetExecutionContext,
        subject: Subject,
        text: EvaluationText,
        results: Path,
        *,
        contexts: Sequence[int],
        windows: int,
    ) -> KvCacheResult:
        """What the KV cache types cost at `contexts`; measured unless `results` has it."""
        with worker_session(context) as session:
            return measure_kv_cache(
                self._on_device(subject),
                text,
                results,
                contexts=contexts,
                windows=windows,
                session=session,
            )

    def obedience(
        self,
        context: dg.AssetExecutionContext,
        subject: Subject,
        prompts: Sequence[ObediencePrompt],
        results: Path,
    ) -> ObedienceResult:
        """The scored answers to all instructions; measured unless `results` has them."""
        with worker_session(context) as session:
            return measure_obedience(self._on_device(subject), prompts, results, session=session)

    def _on_device(self, subject: Subject) -> Subject:
        """The subject with this backend's device."""
        if self.device == "auto":
            return subject
        settings = subject.settings.model_copy(update={"device": self.device})
        return subject._replace(settings=settings)
