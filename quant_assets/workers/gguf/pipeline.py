"""Write the layers of the output with all cores, in order and durably."""

import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

from quant_assets.processes.protocol import EventChannel
from quant_assets.workers.gguf.chunks import Chunk, ChunkWriter, chunks_of
from quant_assets.workers.gguf.kernels.quantizer import Quantizer
from quant_assets.workers.gguf.part_file import PartFile, layer_digest
from quant_assets.workers.gguf.plan import PlannedTensor
from quant_assets.workers.gguf.prepare import CHUNKS_IN_FLIGHT_PER_THREAD, Prepared

_PROGRESS_INTERVAL_S = 0.25
_MILLION = 1_000_000

QUANTIZE = "quantize"


class _Progress:
    """Reports finished parameters at intervals, from any thread."""

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
            QUANTIZE, self._done / _MILLION, self._total / _MILLION, "M parameters"
        )


def write_layers(
    work: Prepared,
    part: PartFile,
    quantizer: Quantizer,
    first_layer: int,
    channel: EventChannel,
) -> int:
    """Write all layers from `first_layer` on; returns the bytes written.

    Worker threads quantize and write chunks; this thread opens tensors ahead of them; another one
    makes the layers durable in order.
    """
    layers = work.plan.layers
    writer = ChunkWriter(part.descriptor, quantizer)
    done = sum(tensor.n_elements for layer in layers[:first_layer] for tensor in layer)
    progress = _Progress(channel, done, work.plan.n_parameters)
    slots = threading.BoundedSemaphore(work.threads * CHUNKS_IN_FLIGHT_PER_THREAD)
    failures: list[BaseException] = []
    commit_errors: list[BaseException] = []

    def finish(future: "Future[bytes]") -> None:
        slots.release()
        if not future.cancelled() and (error := future.exception()) is not None:
            failures.append(error)

    def commit(futures: "list[Future[bytes]]") -> None:
        if commit_errors:
            raise commit_errors[0]  # the journal has no gaps
        try:
            digests = [future.result() for future in futures]
            os.fsync(part.descriptor)
            part.journal.append(layer_digest(digests))
        except BaseException as error:
            commit_errors.append(error)
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
    """One task per chunk of a tensor; the tensor is opened when the first task is requested."""
    rows = work.source.open_tensor(tensor.name)
    importances = work.imatrix.values(tensor.name) if work.imatrix else None
    if importances is not None and importances.size != tensor.row_elements * tensor.shape[2]:
        importances = None  # embeddings only; the plan rejects any other tensor

    def task(chunk: Chunk) -> bytes:
        digest = writer.write(chunk, rows, importances)
        progress.add(chunk.n_rows * tensor.row_elements)
        return digest

    for chunk in chunks_of(tensor):
        yield lambda chunk=chunk: task(chunk)  # type: ignore[misc]
