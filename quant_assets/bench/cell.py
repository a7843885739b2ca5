"""Runs one cell: starts its worker alone on the machine and summarizes the measurements."""

import time
from pathlib import Path
from typing import NamedTuple

from quant_assets.bench.jobs import CellJob, CellMeasurement, RunSample
from quant_assets.bench.record import BenchmarkRecord, RecordOrigin, make_record
from quant_assets.bench.subject import Subject, machine_lock
from quant_assets.host.identity import host_id
from quant_assets.processes.session import UNATTENDED, WorkerSession
from quant_assets.processes.supervisor import run_worker


class MeasuredCell(NamedTuple):
    """A cell's record and its raw runs."""

    record: BenchmarkRecord
    samples: list[RunSample]


def run_cell(
    subject: Subject,
    batch_size: int,
    *,
    session: WorkerSession = UNATTENDED,
    locks: Path | None = None,
) -> MeasuredCell:
    """Measure one cell in a worker process, alone among the benchmarks of this machine.

    Raises `WorkerError` when the worker dies, and the worker's own error when the artifact cannot
    be run.
    """
    variant, settings = subject.variant, subject.settings
    worker, environment = subject.worker("bench")
    job = CellJob(
        model_path=str(subject.artifact.path),
        format=variant.format,
        batch_size=batch_size,
        prompt_tokens=settings.prompt_tokens,
        generated_tokens=settings.generated_tokens,
        warmups=settings.warmups,
        runs=settings.runs,
        threads=settings.effective_threads,
        device=settings.device,
        cache_type_k=variant.cache_type_k,
        cache_type_v=variant.cache_type_v,
    )
    with machine_lock(locks):
        started = time.perf_counter()
        measurement = run_worker(
            worker,
            job,
            CellMeasurement,
            environment=environment,
            session=session,
        )
        command_duration_ms = (time.perf_counter() - started) * 1000
    origin = RecordOrigin(
        model_name=subject.model_name,
        variant_name=variant.name,
        variant=variant,
        artifact_id=subject.artifact.artifact_id,
        backend=variant.backend,
        threads=job.threads,
        host_id=host_id(),
    )
    record = make_record(
        measurement, origin, settings, batch_size, command_duration_ms=command_duration_ms
    )
    return MeasuredCell(record, measurement.samples)
