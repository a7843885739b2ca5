"""A benchmark campaign: the variants of one model, with quality and obedience.

The matrix orders and resumes cells; a campaign chooses variants, finds their artifacts, and adds
quality and obedience, which are measured once per variant.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from quant_assets.artifacts.store import ArtifactStore
from quant_assets.bench.artifact_finder import FindArtifact, LocatedArtifact, artifact_finder
from quant_assets.bench.cell import MeasuredCell, run_cell
from quant_assets.bench.kv_cache import (
    DEFAULT_KV_CACHE_WINDOWS,
    KvCacheResult,
    kv_cache_results,
    measure_kv_cache,
)
from quant_assets.bench.matrix import (
    CellOutcome,
    IncompleteCell,
    PlannedCell,
    first_failure,
    plan_matrix,
    run_matrix,
)
from quant_assets.bench.obedience.measurement import measure_obedience
from quant_assets.bench.obedience.prompts import load_prompts
from quant_assets.bench.quality import (
    DEFAULT_WINDOWS,
    QualityStore,
    measure_quality,
)
from quant_assets.bench.record import BenchmarkRecord
from quant_assets.bench.results import ResultStore, newest_of_cells
from quant_assets.bench.settings import BenchSettings, resolve_variant_names
from quant_assets.bench.subject import Subject
from quant_assets.bench.variants import BASELINE_VARIANT, Variant, load_variants
from quant_assets.errors import InputError, QuantAssetsError
from quant_assets.models.config import ModelConfig, load_models
from quant_assets.processes.protocol import ProgressEvent
from quant_assets.processes.session import UNATTENDED, WorkerSession
from quant_assets.settings import Settings
from quant_assets.texts.evaluation import TextChoice, evaluation_text

LEFT_TO_ESTIMATES = "left to be estimated from the others by `quant-assets recommend --cpu`"

_SPEED_SHARE = 0.5
"""Share of a cell's time that measuring its speed usually takes."""


class ExtraMeasurements(NamedTuple):
    """Measurements besides speed: quality on `text` (None: not), and obedience.

    `kv_cache_contexts` None: those of the model's configuration.
    """

    text: TextChoice | None = None
    windows: int = DEFAULT_WINDOWS
    obedience: bool = False
    kv_cache_contexts: tuple[int, ...] | None = None
    kv_cache_windows: int = DEFAULT_KV_CACHE_WINDOWS


class CellProgress:
    """Reports the cells that have ended, of all that are run."""

    def __init__(self, n_cells: int, session: WorkerSession) -> None:
        self._n_cells = n_cells
        self._session = session
        self._n_ended = 0
        self._begun = False

    def begin(self) -> None:
        """Report the first cell's begin; cells of an interrupted run have ended before it."""
        if not self._begun:
            self._begun = True
            self._report()

    def share(self, start: float, end: float) -> WorkerSession:
        """The session for the current cell's work from `start` to `end`, fractions of the cell."""
        done = self._n_ended
        return self._session.part(
            min(1.0, (done + start) / self._n_cells), min(1.0, (done + end) / self._n_cells)
        )

    def end(self, outcome: CellOutcome) -> None:
        """Count a cell that was not skipped."""
        if outcome.cell.skipped is not None:
            return
        self._n_ended += 1
        if self._begun:
            self._report()

    def _report(self) -> None:
        self._session.progress(
            ProgressEvent(
                step="cells",
                done=self._n_ended,
                total=self._n_cells,
                unit="cells",
                job_fraction=self._n_ended / self._n_cells,
            )
        )


@dataclass(frozen=True)
class Campaign:
    """The chosen variants of one model, in the order in which they run.

    `find` locates artifacts; `baseline` is the artifact that quality is measured against,
    `kv_cache_contexts` are the contexts at which quantized KV caches are compared with F16. `only`
    limits it to some cells, by variant and batch size.
    """

    model_name: str
    variants: Mapping[str, Variant]
    settings: BenchSettings
    results: ResultStore
    find: FindArtifact
    baseline: LocatedArtifact | None = None
    only: frozenset[tuple[str, int]] | None = None
    kv_cache_contexts: tuple[int, ...] = ()

    def plan(self) -> list[PlannedCell]:
        """All cells in order, each with an estimate or the reason why it is skipped."""
        plan = plan_matrix(self.variants, self.settings, self.find, self.results, self.model_name)
        if self.only is None:
            return plan
        return [
            cell
            if cell.skipped or (cell.variant, cell.batch_size) in self.only
            else PlannedCell(
                variant=cell.variant, batch_size=cell.batch_size, skipped=LEFT_TO_ESTIMATES
            )
            for cell in plan
        ]

    def latest_records(self) -> list[BenchmarkRecord]:
        """The newest record of each cell and processor, in the order of the plan."""
        found = (
            self.results.find(variant=name, batch_size=batch_size, model=self.model_name)
            for name in self.variants
            for batch_size in self.settings.batch_sizes
        )
        return [record for records in found for record in newest_of_cells(records)]

    def kv_cache_quality(self) -> list[KvCacheResult]:
        """The newest result of each variant that runs its current artifact and cache types."""
        newest = {}
        for result in kv_cache_results(self.results.folder):
            variant = self.variants.get(result.variant)
            if result.model != self.model_name or variant is None:
                continue
            artifact = self.find(variant)
            types = (variant.cache_type_k, variant.cache_type_v)
            if (
                artifact is not None
                and artifact.artifact_id == result.artifact_id
                and types == (result.cache_type_k, result.cache_type_v)
            ):
                newest[result.variant] = result
        return [newest[name] for name in self.variants if name in newest]

    def run(
        self,
        extras: ExtraMeasurements,
        project: Settings,
        *,
        restart: bool = False,
        session: WorkerSession = UNATTENDED,
    ) -> list[CellOutcome]:
        """Run the plan and append a record per cell; a cell that fails does not stop the others.

        A cell whose quality or obedience fails keeps its record, without that value.
        An interrupted campaign resumes after its last finished cell, unless `restart`.
        """
        plan = self.plan()
        cells = CellProgress(sum(cell.skipped is None for cell in plan), session)

        def measure(subject: Subject, batch_size: int) -> MeasuredCell | IncompleteCell:
            cells.begin()
            record, samples = run_cell(subject, batch_size, session=cells.share(0, _SPEED_SHARE))
            rest = cells.share(_SPEED_SHARE, 1)
            failure: QuantAssetsError | None = None
            for add in (self._with_quality, self._with_obedience):
                try:
                    record = add(record, subject, extras, project, rest)
                except QuantAssetsError as error:
                    failure = failure or error
            if failure is not None:
                return IncompleteCell(record, samples, failure)
            return MeasuredCell(record, samples)

        outcomes = run_matrix(
            plan,
            self.variants,
            self.settings,
            self.find,
            self.results,
            self.model_name,
            measure,
            restart=restart,
        )
        ended = []
        for outcome in outcomes:
            ended.append(outcome)
            cells.end(outcome)
        return ended

    def _with_quality(
        self,
        record: BenchmarkRecord,
        subject: Subject,
        extras: ExtraMeasurements,
        project: Settings,
        session: WorkerSession,
    ) -> BenchmarkRecord:
        if extras.text is None or self.baseline is None:
            return record
        text = evaluation_text(extras.text, project.cache)
        quality = measure_quality(
            subject,
            self.baseline,
            text,
            QualityStore(self.results.folder, project.cache),
            windows=extras.windows,
            session=session,
        )
        contexts = extras.kv_cache_contexts or self.kv_cache_contexts
        if not subject.variant.has_f16_cache and contexts and extras.kv_cache_windows:
            measure_kv_cache(
                subject,
                text,
                self.results.folder,
                contexts=contexts,
                windows=extras.kv_cache_windows,
                session=session,
            )
        return record.with_quality(quality=quality)

    def _with_obedience(
        self,
        record: BenchmarkRecord,
        subject: Subject,
        extras: ExtraMeasurements,
        project: Settings,
        session: WorkerSession,
    ) -> BenchmarkRecord:
        if not extras.obedience:
            return record
        obedience = measure_obedience(
            subject, load_prompts(project.data / "obedience"), self.results.folder, session=session
        )
        return record.with_quality(obedience=obedience)


def open_campaign(
    project: Settings,
    settings: BenchSettings,
    results: ResultStore,
    *,
    model_name: str | None = None,
    variant_names: Sequence[str] | None = None,
) -> Campaign:
    """The campaign of a model of the model list (the first by default) and variants by name.

    Variants without a name are those of `resolve_variant_names`. Raises `InputError` for an unknown
    model or variant.
    """
    known = load_variants(project.variants_yaml)
    chosen = resolve_variant_names(list(known), variant_names)
    model = _known_model(project, model_name)
    name = model.name
    find = artifact_finder(ArtifactStore(project.artifacts), name)
    baseline = known.get(BASELINE_VARIANT)
    return Campaign(
        model_name=name,
        variants={variant: known[variant] for variant in chosen},
        settings=settings,
        results=results,
        find=find,
        baseline=find(baseline) if baseline else None,
        kv_cache_contexts=model.kv_cache_contexts,
    )


def _known_model(project: Settings, name: str | None) -> ModelConfig:
    models = {model.name: model for model in load_models(project.models_yaml)}
    if name is not None and name not in models:
        raise InputError(
            f"There is no model {name!r}.",
            f"The model list has {', '.join(models)}.",
            "Choose one of these, or add the model to the list.",
        )
    return models[name or next(iter(models))]


def measured_records(outcomes: Iterable[CellOutcome]) -> list[BenchmarkRecord]:
    """The records of all cells; raises the `first_failure` if any cell failed."""
    records, failures = [], {}
    for outcome in outcomes:
        if outcome.error is not None:
            failures[f"{outcome.cell.variant} batch {outcome.cell.batch_size}"] = outcome.error
        if outcome.record is not None:
            records.append(outcome.record)
    if failures:
        raise first_failure(failures)
    return records
