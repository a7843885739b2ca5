"""Measure an importance matrix: evaluate the source model on a text and sum its squared inputs.

Source: llama-imatrix (tools/imatrix/imatrix.cpp of llama.cpp). The recipe:

1. Run the model in its own float type over chunks of the calibration text, each from an empty context.
2. For every weight matrix, sum the squares of its inputs per column, and count the rows.
3. Write sums and counts; quantization weights each column's error by the mean, E[x^2].

Life cycle: the output's `.part` file is locked for the whole run; a Hugging Face source is converted
to a temporary GGUF beside the output; a later run of the same job reuses its result.
"""

import ctypes
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from quant_assets.artifacts.output_record import settle_record
from quant_assets.atomic_files import atomic_path
from quant_assets.errors import InputError
from quant_assets.host.own_files import locked_file
from quant_assets.host.resources import check_output_folder
from quant_assets.models.identity import sha256_of
from quant_assets.models.integrity import check_gguf
from quant_assets.processes.protocol import EventChannel
from quant_assets.quantize.gguf.job import ImatrixJob, ImatrixResult, QuantizeGgufJob
from quant_assets.workers.gguf import ggml
from quant_assets.workers.gguf.engine import quantize
from quant_assets.workers.gguf.finished import finished_result, library_identity
from quant_assets.workers.gguf.imatrix_collector import Collector
from quant_assets.workers.gguf.imatrix_file import MatrixInputs, write_imatrix
from quant_assets.workers.gguf.pipeline import QUANTIZE
from quant_assets.workers.gguf.prepare import CHECK, PLAN
from quant_assets.workers.gguf.source import float_type_of

_STEP = "measure"


def compute_imatrix(job: ImatrixJob, channel: EventChannel) -> ImatrixResult:
    """Measure and write; see `quant_assets.quantize.gguf.job.make_imatrix`."""
    check_output_folder(job.output.parent)
    conversion = {} if job.source_kind == "gguf" else {CHECK: 1.0, PLAN: 3.0, QUANTIZE: 16.0}
    channel.plan_steps(conversion | {_STEP: 80.0})
    identity = {
        "source": job.source_identity,
        "calibration": sha256_of(job.calibration),
        "calibration_name": job.calibration_name,
        "chunk_tokens": str(job.chunk_tokens),
        "max_chunks": str(job.max_chunks),
        **library_identity(),
    }
    part = job.output.with_name(f"{job.output.name}.part")
    with locked_file(part, job.output.name, remove=True):
        finished = finished_result(job, identity, ImatrixResult, channel)
        return finished or _measure(job, identity, channel)


def _measure(job: ImatrixJob, identity: dict[str, str], channel: EventChannel) -> ImatrixResult:
    started = time.perf_counter()
    collector = Collector()
    with _runnable(job, channel) as path, _session(path, job, collector) as session:
        n_tokens = n_chunks = 0
        chunks = list(session.chunks(job.calibration.read_text(encoding="utf-8")))
        channel.progress(_STEP, 0, len(chunks), "chunks")
        for n_chunks, chunk in enumerate(chunks, start=1):
            session.evaluate(chunk)
            if collector.error is not None:
                raise collector.error
            n_tokens += len(chunk)
            channel.progress(_STEP, n_chunks, len(chunks), "chunks")
    _check_finite(collector.inputs)
    partial = sum(int((entry.counts == 0).sum()) for entry in collector.inputs.values())
    if partial:
        channel.log(
            f"{partial} experts were never chosen on this text; they count as 1.", "warning"
        )
    with atomic_path(job.output) as temporary:
        write_imatrix(
            temporary,
            collector.inputs,
            dataset=job.calibration_name,
            n_chunks=n_chunks,
            chunk_tokens=job.chunk_tokens,
        )
        memory = channel.memory_usage()
        result = ImatrixResult(
            output=job.output,
            bytes=temporary.stat().st_size,
            sha256=sha256_of(temporary),
            n_entries=len(collector.inputs),
            n_chunks=n_chunks,
            n_tokens=n_tokens,
            partial_experts=partial,
            seconds=time.perf_counter() - started,
            peak_rss_bytes=memory.peak_rss_bytes,
            peak_own_bytes=memory.peak_own_bytes,
            peak_vram_bytes=memory.peak_vram_bytes,
            quantization_job=channel.completed_job(memory),
        )
        settle_record(job, identity, result.sha256, result)
    return result


def _check_finite(inputs: dict[str, MatrixInputs]) -> None:
    for name, entry in inputs.items():
        if not np.isfinite(entry.sums).all():
            raise InputError(
                "The source model computes invalid numbers.",
                f"The input of {name} is infinite or NaN on the calibration text.",
                "Check the source model's files.",
            )


@contextmanager
def _runnable(job: ImatrixJob, channel: EventChannel) -> Iterator[Path]:
    """The source as a GGUF file: itself, or a temporary conversion in its own float type."""
    if job.source_kind == "gguf":
        check_gguf(job.source)
        yield job.source
        return
    with tempfile.TemporaryDirectory(prefix=".imatrix-", dir=job.output.parent) as folder:
        converted = QuantizeGgufJob(
            source=job.source,
            source_kind="hf",
            source_identity=job.source_identity,
            level=float_type_of(job.source),
            output=Path(folder) / "source.gguf",
            threads=job.threads,
            resume=False,
            validate_output=False,
        )
        yield quantize(converted, channel).output


class _Session:
    """A loaded model and its context."""

    def __init__(self, model: Any, context: Any, job: ImatrixJob) -> None:
        import llama_cpp

        self._llama = llama_cpp
        self._context = context
        self._vocabulary = llama_cpp.llama_model_get_vocab(model)
        self._job = job

    def chunks(self, text: str) -> list[list[int]]:
        """The text's tokens in chunks, each starting with BOS if the model uses it."""
        llama, size = self._llama, self._job.chunk_tokens
        encoded = text.encode()
        array = (ctypes.c_int32 * (len(encoded) + 2))()
        count = llama.llama_tokenize(
            self._vocabulary, encoded, len(encoded), array, len(array), True, False
        )
        if count < size:
            raise InputError(
                f"The calibration text {self._job.calibration} is too short.",
                f"It has {max(count, 0)} tokens; one chunk has {size}.",
                "Use a longer text.",
            )
        n_chunks = min(count // size, self._job.max_chunks)
        chunks = [list(array[first : first + size]) for first in range(0, n_chunks * size, size)]
        if llama.llama_vocab_get_add_bos(self._vocabulary):
            for chunk in chunks:
                chunk[0] = llama.llama_vocab_bos(self._vocabulary)
        return chunks

    def evaluate(self, chunk: list[int]) -> None:
        """Run one chunk in an empty context."""
        llama = self._llama
        llama.llama_memory_clear(llama.llama_get_memory(self._context), True)
        batch = llama.llama_batch_init(len(chunk), 0, 1)
        try:
            batch.n_tokens = len(chunk)
            for position, token in enumerate(chunk):
                batch.token[position] = token
                batch.pos[position] = position
                batch.n_seq_id[position] = 1
                batch.seq_id[position][0] = 0
                # Without outputs llama.cpp skips most of the last layer.
                batch.logits[position] = True
            if llama.llama_decode(self._context, batch) != 0:
                raise InputError(
                    "The source model cannot be evaluated.",
                    "llama.cpp failed on a chunk of the calibration text.",
                    "Check that this llama.cpp supports the model's architecture.",
                )
        finally:
            llama.llama_batch_free(batch)


@contextmanager
def _session(path: Path, job: ImatrixJob, collector: Collector) -> Iterator[_Session]:
    import llama_cpp

    llama_cpp.llama_backend_init()
    with ggml.captured_log() as log:
        parameters = llama_cpp.llama_model_default_params()
        parameters.n_gpu_layers = 0
        parameters.use_extra_bufts = False
        model = llama_cpp.llama_model_load_from_file(str(path).encode(), parameters)
        if not model:
            raise InputError(
                f"llama.cpp cannot load {path.name}.",
                ggml.reported_error(log),
                "Check that the model's files are intact.",
            )
        callback = llama_cpp.llama_cpp.ggml_backend_sched_eval_callback(collector)
        settings = llama_cpp.llama_context_default_params()
        settings.n_ctx = settings.n_batch = settings.n_ubatch = job.chunk_tokens
        settings.cb_eval = callback
        if job.threads:
            settings.n_threads = settings.n_threads_batch = job.threads
        context = llama_cpp.llama_init_from_model(model, settings)
        try:
            yield _Session(model, context, job)
        finally:
            llama_cpp.llama_free(context)
            llama_cpp.llama_model_free(model)
