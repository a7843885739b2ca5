"""Compares two sets of records: ratios of run times with confidence intervals."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from pydantic import BaseModel

from quant_assets.bench.jobs import RunSample
from quant_assets.bench.quality import (
    QualityResult,
    TextIdentity,
    quality_results,
    text_identity,
)
from quant_assets.bench.quality import compare as compare_quality
from quant_assets.bench.record import BenchmarkRecord
from quant_assets.bench.results import ResultStore, read_records
from quant_assets.bench.statistics import Ratio, bootstrap_median_ratio
from quant_assets.errors import InputError
from quant_assets.record_files import recency


class Side(NamedTuple):
    """One side of a comparison: its latest record of each cell, and where their samples are."""

    name: str
    store: ResultStore
    records: dict[tuple[str, str, int], BenchmarkRecord]

    @property
    def variants(self) -> set[str]:
        """The variants it has records of."""
        return {variant for _, variant, _ in self.records}


class Comparison(BaseModel):
    """A cell of A over the same cell of B: ratios of medians with 95% bootstrap intervals.

    A time ratio below 1 means that A is faster. `perplexity` is paired by window, on the newest
    text that both sides were measured on; null where there is none.
    """

    model: str
    variant_a: str
    variant_b: str
    batch_size: int
    run_time: Ratio
    time_to_first_token: Ratio
    token_time: Ratio | None
    perplexity: Ratio | None = None
    contended: bool


def open_side(name: str, results: ResultStore) -> Side:
    """The side called `name`: a result file, a folder of them, or a variant of the result store."""
    path = Path(name)
    if path.is_dir():
        store = ResultStore(path)
        return Side(name, store, _latest(store.records()))
    if path.is_file():
        return Side(name, ResultStore(path.parent), _latest(read_records(path)))
    records = results.find(variant=name)
    if not records:
        raise InputError(
            f"There is nothing to compare called {name!r}.",
            f"It is not a file, a folder, or a variant with records in {results.folder}.",
            "Name a result file, a results folder, or a variant that was benchmarked.",
        )
    return Side(name, results, _latest(records))


def _latest(records: Iterable[BenchmarkRecord]) -> dict[tuple[str, str, int], BenchmarkRecord]:
    ordered = sorted(records, key=lambda record: recency(record.metadata.timestamp))
    return {
        (item.metadata.model, item.metadata.variant, item.metadata.batch_size): item
        for item in ordered
    }


def _equal_settings(a: BenchmarkRecord, b: BenchmarkRecord) -> bool:
    fields = ("prompt_tokens", "generated_tokens", "threads", "device", "cpu_name", "gpu_name")
    return all(getattr(a.metadata, field) == getattr(b.metadata, field) for field in fields)


def compare(a: Side, b: Side) -> list[Comparison]:
    """Compare all cells that both sides have, with equal settings on equal machines.

    Sides of one variant each are paired by batch size, others by variant and batch size. Raises
    `InputError` when no cell of both has equal settings.
    """
    across_variants = len(a.variants) == len(b.variants) == 1
    found = []
    for (model, variant, batch_size), record in a.records.items():
        other_variant = next(iter(b.variants)) if across_variants else variant
        other = b.records.get((model, other_variant, batch_size))
        if other is not None and _equal_settings(record, other):
            found.append(_compare_cell(record, a.store, other, b.store))
    if not found:
        raise InputError(
            f"{a.name} and {b.name} cannot be compared.",
            "They share no cell with equal prompt and generated lengths, threads and machine.",
            "Run both with the same settings on one machine.",
        )
    return found


def _compare_cell(
    record: BenchmarkRecord, store: ResultStore, other: BenchmarkRecord, other_store: ResultStore
) -> Comparison:
    samples, other_samples = store.samples(record), other_store.samples(other)
    steps, other_steps = _mean_steps(samples), _mean_steps(other_samples)
    return Comparison(
        model=record.metadata.model,
        variant_a=record.metadata.variant,
        variant_b=other.metadata.variant,
        batch_size=record.metadata.batch_size,
        run_time=bootstrap_median_ratio(
            [run.total_ms for run in samples], [run.total_ms for run in other_samples]
        ),
        time_to_first_token=bootstrap_median_ratio(
            [run.time_to_first_token_ms for run in samples],
            [run.time_to_first_token_ms for run in other_samples],
        ),
        token_time=bootstrap_median_ratio(steps, other_steps) if steps and other_steps else None,
        perplexity=_perplexity(record, store, other, other_store),
        contended=bool(record.contended or other.contended),
    )


def _perplexity(
    record: BenchmarkRecord, store: ResultStore, other: BenchmarkRecord, other_store: ResultStore
) -> Ratio | None:
    """A's perplexity over B's on the newest text that both have."""
    ours, theirs = _quality(record, store), _quality(other, other_store)
    shared = sorted(set(ours) & set(theirs), key=lambda text: recency(ours[text].timestamp))
    for text in reversed(shared):
        ratio = compare_quality(ours[text], theirs[text])
        if ratio is not None:
            return ratio
    return None


def _quality(record: BenchmarkRecord, store: ResultStore) -> dict[TextIdentity, QualityResult]:
    """The newest quality result of a record's artifact on each text."""
    found = [
        result
        for result in quality_results(store.folder)
        if (result.model, result.variant, result.artifact_id)
        == (record.metadata.model, record.metadata.variant, record.metadata.artifact_id)
    ]
    ordered = sorted(found, key=lambda result: recency(result.timestamp))
    return {text_identity(result): result for result in ordered}


def _mean_steps(samples: Sequence[RunSample]) -> list[float]:
    """Each run's mean decoding step: the steps within a run are not independent."""
    return [sum(run.token_ms) / len(run.token_ms) for run in samples if run.token_ms]
