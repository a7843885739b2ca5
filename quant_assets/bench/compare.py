"""Compares two sets of records: ratios of run times with confidence intervals."""

from collections.abc import Iterable, Mapping, Sequence
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


class Cell(NamedTuple):
    """A cell under its conditions; only cells that are equal but for the host are compared."""

    model: str
    variant: str
    batch_size: int
    prompt_tokens: int
    generated_tokens: int
    threads: int | None
    device: str
    cpu_name: str | None
    gpu_name: str | None
    host_id: str | None


class Side(NamedTuple):
    """One side of a comparison: its latest record of each cell, and where their samples are."""

    name: str
    store: ResultStore
    records: dict[Cell, BenchmarkRecord]

    @property
    def variants(self) -> set[str]:
        """The variants it has records of."""
        return {cell.variant for cell in self.records}

    def by_host(self) -> dict[Cell, dict[str | None, BenchmarkRecord]]:
        """The records of each cell, without its host, by host."""
        found: dict[Cell, dict[str | None, BenchmarkRecord]] = {}
        for cell, record in self.records.items():
            found.setdefault(cell._replace(host_id=None), {})[cell.host_id] = record
        return found


class Comparison(BaseModel):
    """A cell of A over the same cell of B: ratios of medians with 95% bootstrap intervals.

    A time ratio below 1 means that A is faster. `same_host`: whether one machine measured both; false
    for different machines with equal processors, whose memory may differ, and null where a record
    does not say. `perplexity` is paired by window, on the newest text that both sides were measured
    on; null where there is none.
    """

    model: str
    variant_a: str
    variant_b: str
    batch_size: int
    processor: str | None
    threads: int | None
    prompt_tokens: int
    generated_tokens: int
    same_host: bool | None
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


def _latest(records: Iterable[BenchmarkRecord]) -> dict[Cell, BenchmarkRecord]:
    ordered = sorted(records, key=lambda record: recency(record.metadata.timestamp))
    return {
        Cell(*(getattr(record.metadata, field) for field in Cell._fields)): record
        for record in ordered
    }


def compare(a: Side, b: Side) -> list[Comparison]:
    """Compare all cells that both sides have, with equal settings on equal processors.

    Sides of one variant each are paired by batch size, others by variant and batch size. Records of
    the same host are compared where both sides have them, otherwise the newest of each, which
    `same_host` flags. Raises `InputError` when no cell of both has equal settings.
    """
    across_variants = len(a.variants) == len(b.variants) == 1
    theirs = b.by_host()
    found = []
    for cell, records in a.by_host().items():
        other_variant = next(iter(b.variants)) if across_variants else cell.variant
        others = theirs.get(cell._replace(variant=other_variant))
        if others is not None:
            found += [
                _compare_cell(record, a.store, other, b.store)
                for record, other in _pairs(records, others)
            ]
    if not found:
        raise InputError(
            f"{a.name} and {b.name} cannot be compared.",
            "They share no cell with equal prompt and generated lengths, threads and processor.",
            "Run both with the same settings on one machine.",
        )
    return found


def _pairs(
    records: Mapping[str | None, BenchmarkRecord], others: Mapping[str | None, BenchmarkRecord]
) -> list[tuple[BenchmarkRecord, BenchmarkRecord]]:
    """The records of each known host of both; without one, the newest of each side."""
    shared = [host for host in records if host is not None and host in others]
    if shared:
        return [(records[host], others[host]) for host in shared]
    return [(_newest(records.values()), _newest(others.values()))]


def _newest(records: Iterable[BenchmarkRecord]) -> BenchmarkRecord:
    return max(records, key=lambda record: recency(record.metadata.timestamp))


def _compare_cell(
    record: BenchmarkRecord, store: ResultStore, other: BenchmarkRecord, other_store: ResultStore
) -> Comparison:
    samples, other_samples = store.samples(record), other_store.samples(other)
    steps, other_steps = _mean_steps(samples), _mean_steps(other_samples)
    run, other_run = record.metadata, other.metadata
    hosts_known = run.host_id is not None and other_run.host_id is not None
    return Comparison(
        model=run.model,
        variant_a=run.variant,
        variant_b=other_run.variant,
        batch_size=run.batch_size,
        processor=run.processor,
        threads=run.threads,
        prompt_tokens=run.prompt_tokens,
        generated_tokens=run.generated_tokens,
        same_host=run.host_id == other_run.host_id if hosts_known else None,
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
