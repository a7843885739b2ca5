"""The runs of one processor, from benchmark records: which of them count, and for what."""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

from quant_assets.bench.record import BenchmarkRecord
from quant_assets.bench.variants import Variant
from quant_assets.errors import InputError
from quant_assets.host.conditions import cpu_name
from quant_assets.host.identity import host_id
from quant_assets.record_files import recency
from quant_assets.speed.host_cells import HostArtifact, StepLengths, host_cell
from quant_assets.speed.host_fit import HostRun

# Of a normal sample, the median varies this much more than the mean (sqrt(pi / 2)).
_MEDIAN_SPREAD = 1.2533

OpenArtifact = Callable[[str], HostArtifact | None]
"""Finds an artifact by its id in records; None where it is gone or damaged."""


class HostRecords(NamedTuple):
    """The records of one processor at a number of threads; `left_out` counts others by reason."""

    cpu_name: str
    threads: int
    records: list[BenchmarkRecord]
    left_out: Counter[str]


def records_of_host(
    records: Iterable[BenchmarkRecord], cpu: str | None, threads: int
) -> HostRecords:
    """The records of this machine at `threads` threads (`cpu` None), or of another processor.

    This machine's are those with its id, or with its processor's name where a record is older than
    ids. `cpu` is the name of a processor or the id of a machine; of several machines and numbers of
    threads, that with the most records is taken. Raises `InputError` without records.
    """
    on_cpu = [record for record in records if record.metadata.device == "cpu"]
    wanted = cpu or cpu_name() or "unknown"
    machine = None if cpu else host_id()
    found = [record for record in on_cpu if _is_of(record, wanted, machine)]
    if not found:
        raise _unknown_processor(wanted, on_cpu, this_machine=cpu is None)
    if cpu is not None:
        setups = Counter(_setup(record) for record in found)
        machine, threads = max(setups, key=lambda setup: (setups[setup], setup[0] or "", setup[1]))
    left_out: Counter[str] = Counter()
    kept = []
    for record in found:
        if cpu is not None and record.metadata.host_id != machine:
            left_out["of another machine with this processor"] += 1
        elif record.metadata.threads != threads:
            left_out[f"with {record.metadata.threads} threads, not {threads}"] += 1
        elif record.contended is not False:
            left_out["measured while the machine was busy with something else"] += 1
        elif not record.decode_tokens_per_s:
            left_out["without a decoding speed"] += 1
        else:
            kept.append(record)
    return HostRecords(found[0].metadata.cpu_name or wanted, threads, kept, left_out)


def host_runs(
    host: HostRecords, variants: Mapping[str, Variant], open_artifact: OpenArtifact
) -> list[HostRun]:
    """The usable runs of a processor; the reasons of the others join `host.left_out`.

    A run of another build of the engine than the newest run's counts less.
    """
    newest: dict[str, BenchmarkRecord] = {}
    for record in sorted(host.records, key=lambda item: recency(item.metadata.timestamp)):
        newest[record.metadata.backend] = record
    runs = []
    for record in host.records:
        run = record.metadata
        variant = variants.get(run.variant)
        artifact = open_artifact(run.artifact_id)
        if variant is None or not _runs_variant(record, variant):
            host.left_out["of a variant that has changed or is gone"] += 1
        elif artifact is None:
            host.left_out["of an artifact that is gone or damaged"] += 1
        else:
            lengths = StepLengths(run.batch_size, run.prompt_tokens, run.generated_tokens)
            assert record.decode_tokens_per_s is not None, "others are left out"
            runs.append(
                HostRun(
                    host_cell(artifact, variant, lengths),
                    record.decode_tokens_per_s,
                    _relative_spread(record),
                    _build(record) == _build(newest[run.backend]),
                )
            )
    return runs


def usual_lengths(runs: Sequence[HostRun], batch: int) -> StepLengths:
    """The prompt and answer of most runs, the longest of equally many."""
    counts = Counter((run.cell.prompt_tokens, run.cell.generated_tokens) for run in runs)
    prompt, generated = max(counts, key=lambda lengths: (counts[lengths], sum(lengths)))
    return StepLengths(batch, prompt, generated)


def _is_of(record: BenchmarkRecord, cpu: str, machine: str | None) -> bool:
    run = record.metadata
    if machine is not None and run.host_id is not None:
        return run.host_id == machine
    return cpu.casefold().strip() in ((run.cpu_name or "").casefold().strip(), run.host_id)


def _setup(record: BenchmarkRecord) -> tuple[str | None, int]:
    return record.metadata.host_id, record.metadata.threads or 0


def _runs_variant(record: BenchmarkRecord, variant: Variant) -> bool:
    run = record.metadata
    caches = (run.cache_type_k or "f16", run.cache_type_v or "f16")
    return (run.format, run.level) == (variant.format, variant.level) and caches == (
        variant.cache_type_k,
        variant.cache_type_v,
    )


def _relative_spread(record: BenchmarkRecord) -> float:
    """The standard deviation of the record's median run time, as a share of it."""
    if record.stddev_ms is None or not record.mean_ms:
        return 0.0
    return _MEDIAN_SPREAD * record.stddev_ms / record.mean_ms / math.sqrt(record.metadata.runs)


def _build(record: BenchmarkRecord) -> tuple[object, ...]:
    run = record.metadata
    return run.build_flags, sorted(run.library_versions.items())


def _unknown_processor(
    wanted: str, on_cpu: Sequence[BenchmarkRecord], *, this_machine: bool
) -> InputError:
    names = sorted({record.metadata.cpu_name or "" for record in on_cpu} - {""})
    return InputError(
        f"There are no benchmark records of {'this machine, ' if this_machine else ''}{wanted!r}.",
        f"There are records of {', '.join(names)}." if names else "No processor has records yet.",
        "Measure some variants with `quant-assets bench`"
        + ("." if this_machine else ", or name one of these processors."),
    )
