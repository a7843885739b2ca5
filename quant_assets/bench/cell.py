"""Running one cell: lock the machine, start the worker, summarize what it measured."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from quant_assets.bench.jobs import CellJob, CellMeasurement, RunSample
from quant_assets.bench.record import BenchmarkRecord, make_record
from quant_assets.bench.settings import BenchSettings
from quant_assets.bench.variants import Variant
from quant_assets.host.locks import LONG_WAIT_S, exclusive_lock
from quant_assets.processes.environments import EnvironmentName
from quant_assets.processes.session import UNATTENDED, WorkerSession
from quant_assets.processes.supervisor import run_worker
from quant_assets.settings import get_settings


class MeasuredCell(NamedTuple):
    """A cell's record and its raw runs."""

    record: BenchmarkRecord
    samples: list[RunSample]


@contextmanager
def machine_lock(locks: Path | None = None) -> Iterator[None]:
    """Hold the machine for one benchmark: whoever comes next waits, in any process.

    Raises `ResourceError` when it was not free within `LONG_WAIT_S` seconds.
    """
    folder = locks or get_settings().locks
    purpose = "the benchmarks of this machine, which run one at a time"
    with exclusive_lock(folder / "benchmark.lock", purpose, wait_s=LONG_WAIT_S):
        yield


def worker_of(variant: Variant) -> tuple[str, EnvironmentName]:
    """(benchmark worker, its environment) of a variant."""
    if variant.format == "gguf":
        return "llama_cpp.bench", "main"
    return "torch.bench", "gptq"


def run_cell(
    variant: Variant,
    batch_size: int,
    artifact_path: Path,
    artifact_id: str,
    model_name: str,
    settings: BenchSettings,
    *,
    session: WorkerSession = UNATTENDED,
    locks: Path | None = None,
) -> MeasuredCell:
    """Measure one cell in a worker process, alone among the benchmarks of this machine.

    Raises `WorkerError` when the worker dies, and the worker's own error when the artifact cannot
    be run.
    """
    worker, environment = worker_of(variant)
    job = CellJob(
        model_path=str(artifact_path),
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
        measurement = run_worker(
            worker,
            job,
            CellMeasurement,
            environment=environment,
            session=session,
        )
    record = make_record(
        measurement,
        settings,
        variant_name=variant.name,
        variant=variant,
        backend=variant.backend,
        batch_size=batch_size,
        model_name=model_name,
        artifact_id=artifact_id,
        threads=job.threads,
    )
    return MeasuredCell(record, measurement.samples)
