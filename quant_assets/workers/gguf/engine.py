"""One pass from a model to a quantized GGUF file: no intermediate file, resumable at any layer."""

import hashlib
import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pydantic import ValidationError

from quant_assets.artifacts.job import library_versions
from quant_assets.artifacts.output_record import (
    OutputRecord,
    differences,
    finished_output,
    settle_record,
)
from quant_assets.atomic_files import replace_durably
from quant_assets.errors import InputError, ResourceError
from quant_assets.formats.gguf_levels import GgufLevel, parse_level
from quant_assets.host.own_files import is_named, locked_file
from quant_assets.host.resources import (
    check_disk,
    check_memory,
    check_output_folder,
)
from quant_assets.models.identity import sha256_of
from quant_assets.models.integrity import check_hf_folder
from quant_assets.processes.protocol import EventChannel, resident_memory
from quant_assets.quantize.gguf.job import (
    GgufPlan,
    GgufPlanJob,
    QuantizeGgufJob,
    QuantizeGgufResult,
    ValidateGgufJob,
    ValidateGgufResult,
    validate_gguf,
)
from quant_assets.workers.gguf import ggml
from quant_assets.workers.gguf.chunks import (
    CHUNK_ELEMENTS,
    Chunk,
    ChunkWriter,
    chunks_of,
    digest_at,
    write_at,
)
from quant_assets.workers.gguf.imatrix_file import ImportanceMatrix, read_imatrix
from quant_assets.workers.gguf.journal import Journal
from quant_assets.workers.gguf.kernels.quantizer import Quantizer
from quant_assets.workers.gguf.plan import FilePlan, PlannedTensor, make_plan
from quant_assets.workers.gguf.source import GgufSource, HuggingFaceSource, Source

# What the process takes with its libraries loaded, measured, with some room.
BASE_MEMORY_BYTES = 350_000_000
_BYTES_PER_CHUNK_ELEMENT = 12  # source, float32 and target, at their largest
_CHUNKS_IN_FLIGHT_PER_THREAD = 3
_PROGRESS_INTERVAL_S = 0.25
_STAT_BLOCK_BYTES = 512  # the unit of st_blocks
_MILLION = 1_000_000
_CHECK, _PLAN, _QUANTIZE, _VALIDATE = "check", "plan", "quantize", "validate"


@dataclass
class Prepared:
    """A source that is open and the plan of its output."""

    source: Source
    plan: FilePlan
    level: GgufLevel
    imatrix: ImportanceMatrix | None
    threads: int

    @property
    def peak_memory_bytes(self) -> int:
        """The most memory that the work needs: two computed tensors at once and the buffers."""
        computed = [self.source.memory_bytes(tensor.name) for tensor in self.plan.tensors]
        chunks = self.threads * (1 + _CHUNKS_IN_FLIGHT_PER_THREAD)
        largest_row = max(tensor.row_elements for tensor in self.plan.tensors)
        buffers = chunks * _BYTES_PER_CHUNK_ELEMENT * max(CHUNK_ELEMENTS, largest_row)
        return BASE_MEMORY_BYTES + sum(sorted(computed)[-2:]) + buffers


@contextmanager
def prepared(job: GgufPlanJob | QuantizeGgufJob, channel: EventChannel) -> Iterator[Prepared]:
    """Check the source, open it and plan the output; nothing of the output is written.

    Raises `InputError` for whatever is wrong with the source, level or importance matrix.
    """
    channel.progress(_CHECK, 0, 1, "steps")
    level = parse_level(job.level)
    imatrix = read_imatrix(job.imatrix) if job.imatrix else None
    if imatrix is None and level.needs_imatrix:
        raise InputError(
            f"The level {level} needs an importance matrix.",
            "llama.cpp refuses it without one, because the result would be useless.",
            "Give one with --imatrix FILE, or take a level such as Q2_K or Q3_K_S.",
        )
    if job.source_kind == "hf":
        check_hf_folder(job.source)
    channel.progress(_CHECK, 1, 1, "steps")
    channel.progress(_PLAN, 0, 1, "steps")
    with tempfile.TemporaryDirectory(prefix="quant-assets-") as scratch:
        source: Source = (
            HuggingFaceSource(job.source, Path(scratch))
            if job.source_kind == "hf"
            else GgufSource(job.source)
        )
        plan = make_plan(source.metadata, level, imatrix)
    channel.progress(_PLAN, 1, 1, "steps")
    yield Prepared(source, plan, level, imatrix, job.threads or os.cpu_count() or 1)


def plan_only(job: GgufPlanJob, channel: EventChannel) -> GgufPlan:
    """What a run would make, after the same checks."""
    with prepared(job, channel) as work:
        plan = work.plan
        return GgufPlan(
            architecture=work.source.metadata.text("general.architecture") or "unknown",
            level=work.level.name,
            intermediate=work.source.intermediate,
            type_policy=plan.type_policy,
            n_parameters=plan.n_parameters,
            n_layers=len(plan.layers),
            file_bytes=plan.file_bytes,
            bits_per_weight=plan.bits_per_weight,
            groups=plan.groups,
            estimated_seconds=estimate_seconds(work),
            estimated_peak_bytes=work.peak_memory_bytes,
        )


def estimate_seconds(work: Prepared) -> float:
    """Time the quantization of one chunk of each type on one core, and count up."""
    quantizer = Quantizer(tensor.target_type for tensor in work.plan.tensors)
    generator = np.random.default_rng(0)
    by_type: dict[int, int] = {}
    for tensor in work.plan.tensors:
        if tensor.target_type not in ggml.FLOAT_TYPES:
            by_type[tensor.target_type] = by_type.get(tensor.target_type, 0) + tensor.n_elements
    row = 256  # one block of any type
    n_rows = CHUNK_ELEMENTS // row
    values = generator.standard_normal(CHUNK_ELEMENTS, dtype=np.float32)
    weights = np.ones(row, dtype=np.float32)
    target = np.empty(values.nbytes, dtype=np.uint8)
    core_seconds = 0.0
    for target_type, n_elements in by_type.items():
        started = time.perf_counter()
        quantizer.quantize(
            target_type,
            values.ctypes.data,
            target.ctypes.data,
            n_rows,
            row,
            weights.ctypes.data if work.imatrix else None,
        )
        core_seconds += (time.perf_counter() - started) * n_elements / values.size
    return core_seconds / work.threads


def quantize(job: QuantizeGgufJob, channel: EventChannel) -> QuantizeGgufResult:
    """Make the file `job.output`; see `quant_assets.quantize.gguf.job.quantize_gguf`."""
    started = time.perf_counter()
    check_output_folder(job.output.parent)
    with prepared(job, channel) as work, _part_file(job.output) as part:
        identity = _identity(job, work)
        # Looked up under the lock: another process may just have finished the same job.
        finished = finished_output(
            job.output,
            identity,
            job.source,
            overwrite=job.overwrite,
            log=lambda why: channel.log(why, "warning"),
        )
        if finished is not None and (known := _result_of(finished, job)) is not None:
            channel.log("Nothing is to be done: this job has finished, and its file is whole.")
            return known
        _check_resources(job.output.parent, part, work)
        return _make(job, work, part, identity, started, channel)


def _result_of(record: OutputRecord, job: QuantizeGgufJob) -> QuantizeGgufResult | None:
    """The recorded result of the finished job, if it says as much as `job` asks for."""
    try:
        result = QuantizeGgufResult.model_validate(record.result)
    except ValidationError:
        return None
    if job.validate_output and not result.validated:
        return None
    return result.model_copy(update={"output": job.output, "reused": True})


def _make(
    job: QuantizeGgufJob,
    work: Prepared,
    part: "_PartFile",
    identity: dict[str, str],
    started: float,
    channel: EventChannel,
) -> QuantizeGgufResult:
    """Quantize what is missing of the part file, validate it and give it its name."""
    plan = work.plan
    first_layer = _resume_point(job, part, plan, identity, channel)
    quantizer = Quantizer(
        (tensor.target_type for tensor in plan.tensors),
        refuse=lambda why: channel.log(why, "warning"),
    )
    n_written = _write_layers(work, part, quantizer, first_layer, channel)
    digest, said = _validate(job, part.path, channel)
    result = QuantizeGgufResult(
        output=job.output,
        bytes=plan.file_bytes,
        sha256=digest,
        architecture=work.source.metadata.text("general.architecture") or "unknown",
        level=work.level.name,
        intermediate=work.source.intermediate,
        n_parameters=plan.n_parameters,
        n_layers=len(plan.layers),
        bits_per_weight=plan.bits_per_weight,
        tensor_types=plan.tensor_types,
        type_policy=plan.type_policy,
        kernels=quantizer.kernels,
        library_versions=library_versions("gguf"),
        seconds=time.perf_counter() - started,
        cpu_seconds=time.process_time(),
        resumed_from_layer=first_layer or None,
        peak_rss_bytes=resident_memory()[1],
        bytes_written=n_written,
        validated=said is not None,
        generated_text=said.generated_text if said else None,
    )
    part.check_name()
    settle_record(job, identity, digest, result)
    replace_durably(part.path, job.output)
    part.journal.remove()
    return result


@dataclass
class _PartFile:
    """The unfinished output: the file under its temporary name, open and locked."""

    path: Path
    descriptor: int
    journal: Journal

    @property
    def size_on_disk(self) -> int:
        """Bytes that the file takes already."""
        return os.fstat(self.descriptor).st_blocks * _STAT_BLOCK_BYTES

    def check_name(self) -> None:
        """Raise `ResourceError` when the name is no longer that of the file that was written."""
        if not is_named(self.path, self.descriptor):
            raise ResourceError(
                f"The unfinished file {self.path} was removed or replaced.",
                "Another program did so while this run was writing it.",
                "Run the same command again, and leave its files alone until it ends.",
            )


@contextmanager
def _part_file(output: Path) -> Iterator[_PartFile]:
    path = output.with_name(f"{output.name}.part")
    journal = Journal(path.with_name(f"{path.name}.journal"))
    with suppress(FileNotFoundError):
        journal.path.lstat()  # the run's longest name: one that is too long ends the run here
    with locked_file(path, output.name) as descriptor:
        part = _PartFile(path, descriptor, journal)
        try:
            yield part
        finally:
            journal.close()
            if not os.fstat(descriptor).st_size and is_named(path, descriptor):
                # Nothing was written: the job was refused or had finished.
                path.unlink()
                journal.path.unlink(missing_ok=True)


def _check_resources(folder: Path, part: _PartFile, work: Prepared) -> None:
    # What an earlier run wrote takes no space a second time.
    check_disk(folder, max(0, work.plan.file_bytes - part.size_on_disk))
    check_memory(work.peak_memory_bytes - resident_memory()[0])


def _identity(job: QuantizeGgufJob, work: Prepared) -> dict[str, str]:
    """Everything that decides the output's bytes."""
    return {
        "source": job.source_identity,
        "level": work.level.name,
        "importance_matrix": sha256_of(job.imatrix) if job.imatrix else "none",
        "header": hashlib.sha256(work.plan.header).hexdigest(),
        **{name.replace("-", "_"): version for name, version in library_versions("gguf").items()},
    }


def _resume_point(
    job: QuantizeGgufJob,
    part: _PartFile,
    plan: FilePlan,
    identity: dict[str, str],
    channel: EventChannel,
) -> int:
    """Set up the part file; returns the index of the first layer to make."""
    known, digests = part.journal.read()
    whole: list[str] = []
    if known and not job.resume:
        channel.log("Starting over: resuming is switched off.")
    elif known and known != identity:
        changed = "; ".join(differences(known, identity))
        channel.log(f"Starting over: the unfinished file is of another job ({changed}).", "warning")
    elif known:
        whole = _whole_layers(part, plan, digests)
        if len(whole) < len(digests):
            channel.log(
                f"The unfinished file is damaged after layer {len(whole)}; going on from there.",
                "warning",
            )
        channel.log(f"Resuming: {len(whole)} of {len(plan.layers)} layers are there.")
    if not whole:
        os.ftruncate(part.descriptor, 0)
    os.ftruncate(part.descriptor, plan.file_bytes)
    # Digests cover tensors alone; what lies before and between them is written again.
    write_at(part.descriptor, plan.header, 0)
    for offset, n_bytes in _gaps(plan):
        write_at(part.descriptor, bytes(n_bytes), offset)
    part.journal.start(identity, whole)
    return len(whole)


def _gaps(plan: FilePlan) -> Iterator[tuple[int, int]]:
    """(offset, bytes) of the padding after the header, between tensors and after the last one."""
    end = len(plan.header)
    for tensor in sorted(plan.tensors, key=lambda tensor: tensor.offset):
        if tensor.offset > end:
            yield end, tensor.offset - end
        end = tensor.offset + tensor.n_bytes
    if plan.file_bytes > end:
        yield end, plan.file_bytes - end


def _whole_layers(part: _PartFile, plan: FilePlan, digests: list[str]) -> list[str]:
    """The leading digests that what lies in the file still has."""
    whole = []
    for layer, digest in zip(plan.layers, digests, strict=False):
        found = [
            digest_at(part.descriptor, chunk) for tensor in layer for chunk in chunks_of(tensor)
        ]
        if _layer_digest(found) != digest:
            break
        whole.append(digest)
    return whole


def _layer_digest(chunk_digests: list[bytes]) -> str:
    return hashlib.sha256(b"".join(chunk_digests)).hexdigest()


class _Progress:
    """Reports finished parameters, now and then, from any thread."""

    def __init__(self, channel: EventChannel, done: int, total: int) -> None:
        self._channel = channel
        self._done = done
        self._total = total
        self._lock = threading.Lock()
        self._last = 0.0
        self.send()

    def add(self, n_elements: int) -> None:
        with self._lock:
            self._done += n_elements
            due = time.monotonic() - self._last >= _PROGRESS_INTERVAL_S
        if due:
            self.send()

    def send(self) -> None:
        self._last = time.monotonic()
        self._channel.progress(
            _QUANTIZE, self._done / _MILLION, self._total / _MILLION, "M parameters"
        )


def _write_layers(
    work: Prepared,
    part: _PartFile,
    quantizer: Quantizer,
    first_layer: int,
    channel: EventChannel,
) -> int:
    """Make all layers from `first_layer` on; returns the bytes written.

    Worker threads make chunks; this thread opens tensors ahead of them; one more makes every layer
    durable in its order.
    """
    layers = work.plan.layers
    writer = ChunkWriter(part.descriptor, quantizer)
    done = sum(tensor.n_elements for layer in layers[:first_layer] for tensor in layer)
    progress = _Progress(channel, done, work.plan.n_parameters)
    slots = threading.BoundedSemaphore(work.threads * _CHUNKS_IN_FLIGHT_PER_THREAD)
    failures: list[BaseException] = []

    not_durable: list[BaseException] = []

    def finish(future: "Future[bytes]") -> None:
        slots.release()
        if not future.cancelled() and (error := future.exception()) is not None:
            failures.append(error)

    def commit(futures: "list[Future[bytes]]") -> None:
        if not_durable:
            raise not_durable[0]  # the journal has no gaps
        try:
            digests = [future.result() for future in futures]
            os.fsync(part.descriptor)
            part.journal.append(_layer_digest(digests))
        except BaseException as error:
            not_durable.append(error)
            failures.append(error)
            raise
        progress.send()

    n_written = len(work.plan.header)
    commits: list[Future[None]] = []
    with (
        ThreadPoolExecutor(1, "commit") as committer,
        ThreadPoolExecutor(work.threads, "rows") as pool,
    ):
        try:
            for index in range(first_layer, len(layers)):
                for tensor in [*layers[index], *_next(layers, index)]:
                    work.source.prefetch(tensor.name)
                futures = []
                for tensor in layers[index]:
                    n_written += tensor.n_bytes
                    for task in _chunk_tasks(work, writer, tensor, progress):
                        slots.acquire()
                        if failures:
                            raise failures[0]
                        future = pool.submit(task)
                        future.add_done_callback(finish)
                        futures.append(future)
                commits.append(committer.submit(commit, futures))
            for committed in commits:
                committed.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            committer.shutdown(cancel_futures=True)
            raise
    return n_written


def _next(layers: list[list[PlannedTensor]], index: int) -> list[PlannedTensor]:
    return layers[index + 1] if index + 1 < len(layers) else []


def _chunk_tasks(
    work: Prepared, writer: ChunkWriter, tensor: PlannedTensor, progress: _Progress
) -> Iterator[Callable[[], bytes]]:
    """The work of one tensor, chunk by chunk; the tensor is opened when the first is asked for."""
    rows = work.source.open_tensor(tensor.name)
    importances = work.imatrix.values(tensor.name) if work.imatrix else None
    if importances is not None and importances.size != tensor.row_elements * tensor.shape[2]:
        importances = None  # embeddings only; the plan has refused any other

    def task(chunk: Chunk) -> bytes:
        digest = writer.write(chunk, rows, importances)
        progress.add(chunk.n_rows * tensor.row_elements)
        return digest

    for chunk in chunks_of(tensor):
        yield lambda chunk=chunk: task(chunk)  # type: ignore[misc]


def _validate(
    job: QuantizeGgufJob, path: Path, channel: EventChannel
) -> tuple[str, ValidateGgufResult | None]:
    """The SHA-256 of the finished file, and what it said when it was loaded."""
    if not job.validate_output:
        return sha256_of(path), None
    channel.progress(_VALIDATE, 0, 1, "steps")
    # The run's log is this process's; the child must not report into it a second time.
    os.environ.pop("DAGSTER_PIPES_CONTEXT", None)
    with ThreadPoolExecutor(1) as hasher:
        digest = hasher.submit(sha256_of, path)
        said = validate_gguf(ValidateGgufJob(path=path, threads=job.threads))
        channel.progress(_VALIDATE, 1, 1, "steps")
        return digest.result(), said
