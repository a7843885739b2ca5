"""The run matrix: variants x batch sizes, planned, estimated, run and resumed cell by cell."""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from pydantic import BaseModel, ValidationError

from quant_assets.atomic_files import write_text_atomically
from quant_assets.bench.artifact_finder import FindArtifact, LocatedArtifact
from quant_assets.bench.cell import MeasuredCell
from quant_assets.bench.jobs import RunSample
from quant_assets.bench.record import BenchmarkRecord
from quant_assets.bench.results import ResultStore
from quant_assets.bench.settings import BenchSettings
from quant_assets.bench.subject import Subject
from quant_assets.bench.variants import Variant
from quant_assets.errors import QuantAssetsError
from quant_assets.host.identity import host_id
from quant_assets.record_files import recency

# Rough processor speed for estimating a cell that has never run: weight bytes read per second in
# decoding, and the number of prompt tokens that cost as much as one decoded token.
_ASSUMED_BYTES_PER_S = 8e9
_PROMPT_TOKENS_PER_STEP = 4


class IncompleteCell(NamedTuple):
    """A measured cell whose quality or obedience failed with `error`."""

    record: BenchmarkRecord
    samples: list[RunSample]
    error: QuantAssetsError


RunCell = Callable[[Subject, int], MeasuredCell | IncompleteCell]


class PlannedCell(BaseModel):
    """One cell: its artifact and its estimated time, or the reason to skip it."""

    variant: str
    batch_size: int
    artifact_id: str | None = None
    estimate_s: float | None = None
    estimate_basis: str | None = None
    skipped: str | None = None


class CellOutcome(NamedTuple):
    """How a cell ended: with a record (`resumed`: an earlier one), skipped, or with an error.

    A record with an error lacks quality or obedience.
    """

    cell: PlannedCell
    record: BenchmarkRecord | None
    resumed: bool = False
    error: QuantAssetsError | None = None


def plan_matrix(
    variants: Mapping[str, Variant],
    settings: BenchSettings,
    find_artifact: FindArtifact,
    results: ResultStore,
    model_name: str,
) -> list[PlannedCell]:
    """All cells in execution order, each with an estimate or a reason to skip it."""
    earlier = list(results.records())
    plan = []
    for variant in variants.values():
        artifact = find_artifact(variant)
        for batch_size in settings.batch_sizes:
            cell = PlannedCell(variant=variant.name, batch_size=batch_size)
            if artifact is None:
                reason = f"no {variant.format} artifact of level {variant.level}"
                plan.append(cell.model_copy(update={"skipped": reason}))
                continue
            seconds, basis = _estimate(cell, artifact, settings, earlier, model_name)
            plan.append(
                cell.model_copy(
                    update={
                        "artifact_id": artifact.artifact_id,
                        "estimate_s": seconds,
                        "estimate_basis": basis,
                    }
                )
            )
    return plan


def _estimate(
    cell: PlannedCell,
    artifact: LocatedArtifact,
    settings: BenchSettings,
    earlier: Sequence[BenchmarkRecord],
    model_name: str,
) -> tuple[float, str]:
    runs, this_host = settings.warmups + settings.runs, host_id()
    known = [
        record
        for record in earlier
        if (record.metadata.variant, record.metadata.batch_size, record.metadata.model)
        == (cell.variant, cell.batch_size, model_name)
        and record.metadata.prompt_tokens == settings.prompt_tokens
        and record.metadata.generated_tokens == settings.generated_tokens
        and record.metadata.host_id in (None, this_host)
    ]
    if known:
        last = max(known, key=lambda record: recency(record.metadata.timestamp))
        return (last.mean_ms * runs + (last.load_time_ms or 0)) / 1000, "the last record"
    steps = settings.generated_tokens + settings.prompt_tokens / _PROMPT_TOKENS_PER_STEP
    run_s = steps * cell.batch_size * artifact.size_bytes / _ASSUMED_BYTES_PER_S
    return run_s * runs, "the size of the weights"


class _Journal(BaseModel):
    """Resume journal of an unfinished matrix: cell key to record id of the finished cells."""

    finished: dict[str, str] = {}


def _cell_key(cell: PlannedCell) -> str:
    return f"{cell.variant}|{cell.batch_size}|{cell.artifact_id}"


def _journal_path(
    plan: Sequence[PlannedCell], settings: BenchSettings, model_name: str, results: ResultStore
) -> Path:
    identity = json.dumps(
        [
            host_id(),
            model_name,
            settings.model_dump(mode="json"),
            [_cell_key(cell) for cell in plan],
        ],
        sort_keys=True,
    )
    digest = hashlib.sha256(identity.encode()).hexdigest()[:16]
    return results.folder / ".matrix" / f"{digest}.json"


def run_matrix(
    plan: Sequence[PlannedCell],
    variants: Mapping[str, Variant],
    settings: BenchSettings,
    find_artifact: FindArtifact,
    results: ResultStore,
    model_name: str,
    run: RunCell,
    *,
    restart: bool = False,
) -> Iterator[CellOutcome]:
    """Run the planned cells one after the other and append each record as soon as it is measured.

    An interrupted matrix (same machine, model, settings, cells and artifacts) resumes after its last
    finished cell, unless `restart`. A failing cell does not stop the others.
    """
    path = _journal_path(plan, settings, model_name, results)
    journal = _Journal() if restart else _read_journal(path)
    complete = True
    for cell in plan:
        if cell.skipped is not None:
            yield CellOutcome(cell, None)
            continue
        known = journal.finished.get(_cell_key(cell))
        found = results.find(record_id=known) if known else []
        if found:
            yield CellOutcome(cell, found[0], resumed=True)
            continue
        variant = variants[cell.variant]
        artifact = find_artifact(variant)
        assert artifact is not None, "a planned cell has its artifact"
        try:
            subject = Subject(model_name, variant, artifact, settings)
            measured = run(subject, cell.batch_size)
        except QuantAssetsError as error:
            complete = False
            yield CellOutcome(cell, None, error=error)
            continue
        record = results.append(measured.record, measured.samples)
        if isinstance(measured, IncompleteCell):
            complete = False
            yield CellOutcome(cell, record, error=measured.error)
            continue
        journal.finished[_cell_key(cell)] = record.record_id
        write_text_atomically(path, journal.model_dump_json())
        yield CellOutcome(cell, record)
    if complete:
        path.unlink(missing_ok=True)


def _read_journal(path: Path) -> _Journal:
    try:
        return _Journal.model_validate_json(path.read_bytes())
    except (OSError, ValidationError):
        return _Journal()


def first_failure(failures: Mapping[str, QuantAssetsError]) -> QuantAssetsError:
    """The error of the first of at least one failure; its cause names the others."""
    first, *others = failures.values()
    if not others:
        return first
    names = list(failures)
    why = f"{first.why} That was {names[0]}; also failed: {', '.join(names[1:])}."
    return type(first)(first.what, why, first.next_step)
