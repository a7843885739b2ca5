"""Measure an importance matrix: run the source model over a text and watch every matrix's input.

What is summed, and which tensors are watched, follows llama-imatrix (tools/imatrix/imatrix.cpp).
"""

import ctypes
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import ValidationError

from quant_assets.artifacts.job import library_versions
from quant_assets.artifacts.output_record import OutputRecord, finished_output, settle_record
from quant_assets.atomic_files import atomic_path
from quant_assets.errors import InputError
from quant_assets.host.own_files import locked_file
from quant_assets.host.resources import check_output_folder
from quant_assets.models.identity import sha256_of
from quant_assets.models.integrity import check_gguf
from quant_assets.processes.protocol import EventChannel, resident_memory
from quant_assets.quantize.gguf.job import ImatrixJob, ImatrixResult, QuantizeGgufJob
from quant_assets.workers.gguf import ggml
from quant_assets.workers.gguf.engine import quantize
from quant_assets.workers.gguf.imatrix_file import MatrixInputs, write_imatrix
from quant_assets.workers.gguf.source import float_type_of

_MIN_ROWS = 16  # llama-imatrix ignores smaller batches
_WATCHED_PREFIX = "blk."
_STEP = "measure"


class Collector:
    """Sums the squared inputs of the model's matrices while llama.cpp evaluates it."""

    def __init__(self) -> None:
        self.inputs: dict[str, MatrixInputs] = {}
        self.error: Exception | None = None
        self._library = ggml.base_library()

    def __call__(self, pointer: int, ask: bool, _: Any) -> bool:
        """llama.cpp's callback: whether a node is wanted, then the node itself."""
        try:
            node = ggml.Tensor.from_address(pointer)
            if ask:
                return self._wanted(node)
            if self._operation(node) == "MUL_MAT_ID":
                self._add_experts(node)
            else:
                self._add_matrix(node)
        except Exception as error:  # an exception cannot cross the C code; it is raised later
            self.error = self.error or error
            return False
        return True

    def _operation(self, node: ggml.Tensor) -> str:
        name: bytes = self._library.ggml_op_name(node.op)
        return name.decode()

    def _wanted(self, node: ggml.Tensor) -> bool:
        operation = self._operation(node)
        if operation == "MUL_MAT_ID":
            return True
        if operation != "MUL_MAT":
            return False
        inputs = node.src[1].contents
        return bool(
            inputs.ne[1] >= _MIN_ROWS
            and inputs.type == ggml.F32
            and node.src[0].contents.name.decode().startswith(_WATCHED_PREFIX)
        )

    def _add_matrix(self, node: ggml.Tensor) -> None:
        weights, inputs = node.src[0].contents, node.src[1].contents
        row = weights.ne[0]
        n_matrices = weights.ne[2] * weights.ne[3]
        entry = self._entry(weights, n_counts=1, n_values=row * n_matrices)
        values = _array(inputs, np.float32)
        sums = np.square(values, dtype=np.float64).sum(axis=2)  # (ne3, ne2, ne0)
        by_matrix = entry.sums.reshape(weights.ne[3], weights.ne[2], row)
        for i3 in range(inputs.ne[3]):
            for i2 in range(inputs.ne[2]):
                by_matrix[i3 % weights.ne[3], i2 % weights.ne[2]] += sums[i3, i2]
        entry.counts[0] += inputs.ne[1] * inputs.ne[2] * inputs.ne[3] // n_matrices

    def _add_experts(self, node: ggml.Tensor) -> None:
        weights, inputs, chosen = (node.src[index].contents for index in range(3))
        n_experts = weights.ne[2]
        entry = self._entry(weights, n_counts=n_experts, n_values=weights.ne[0] * n_experts)
        values = np.square(_array(inputs, np.float32)[0], dtype=np.float64)  # (tokens, slots, row)
        experts = _array(chosen, np.int32)[0, 0]  # (tokens, used experts)
        for slot in range(experts.shape[1]):
            used = experts[:, slot]
            np.add.at(entry.sums, used, values[:, slot % values.shape[1]])
            np.add.at(entry.counts, used, 1)

    def _entry(self, weights: ggml.Tensor, *, n_counts: int, n_values: int) -> MatrixInputs:
        name = weights.name.decode()
        if name not in self.inputs:
            self.inputs[name] = MatrixInputs(
                sums=np.zeros((n_counts, n_values // n_counts)),
                counts=np.zeros(n_counts, dtype=np.int64),
            )
        return self.inputs[name]


def _array(tensor: ggml.Tensor, dtype: type) -> npt.NDArray[Any]:
    """A view of a tensor in this process's memory, slowest dimension first."""
    shape = tuple(reversed(tensor.ne))
    strides = tuple(reversed(tensor.nb))
    n_bytes = sum((extent - 1) * stride for extent, stride in zip(shape, strides, strict=True))
    memory = (ctypes.c_uint8 * (n_bytes + np.dtype(dtype).itemsize)).from_address(tensor.data)
    return np.lib.stride_tricks.as_strided(np.frombuffer(memory, dtype=dtype), shape, strides)


def compute_imatrix(job: ImatrixJob, channel: EventChannel) -> ImatrixResult:
    """Measure and write; see `quant_assets.quantize.gguf.job.make_imatrix`."""
    check_output_folder(job.output.parent)
    identity = {
        "source": job.source_identity,
        "calibration": sha256_of(job.calibration),
        "calibration_name": job.calibration_name,
        "chunk_tokens": str(job.chunk_tokens),
        "max_chunks": str(job.max_chunks),
        **{name.replace("-", "_"): version for name, version in library_versions("gguf").items()},
    }
    part = job.output.with_name(f"{job.output.name}.part")
    with locked_file(part, job.output.name, remove=True):
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
        return _measure(job, identity, channel)


def _result_of(record: OutputRecord, job: ImatrixJob) -> ImatrixResult | None:
    try:
        result = ImatrixResult.model_validate(record.result)
    except ValidationError:
        return None
    return result.model_copy(update={"output": job.output})


def _measure(job: ImatrixJob, identity: dict[str, str], channel: EventChannel) -> ImatrixResult:
    started = time.perf_counter()
    collector = Collector()
    with _runnable(job, channel) as path, _session(path, job, collector) as session:
        n_tokens = n_chunks = 0
        chunks = list(session.chunks(job.calibration.read_text(encoding="utf-8")))
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
        result = ImatrixResult(
            output=job.output,
            bytes=temporary.stat().st_size,
            sha256=sha256_of(temporary),
            n_entries=len(collector.inputs),
            n_chunks=n_chunks,
            n_tokens=n_tokens,
            partial_experts=partial,
            seconds=time.perf_counter() - started,
            peak_rss_bytes=resident_memory()[1],
        )
        settle_record(job, identity, result.sha256, result)
    return result


def _check_finite(inputs: dict[str, MatrixInputs]) -> None:
    for name, entry in inputs.items():
        if not np.isfinite(entry.sums).all():
            raise InputError(
                "The source model computes values that are no numbers.",
                f"The input of {name} is infinite or not a number on the calibration text.",
                "Check the source model's files.",
            )


@contextmanager
def _runnable(job: ImatrixJob, channel: EventChannel) -> Iterator[Path]:
    """The source as a GGUF file that llama.cpp runs: itself, or a temporary one of its own type."""
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
        """The text's tokens in chunks, each beginning with BOS where the model wants one."""
        llama, size = self._llama, self._job.chunk_tokens
        encoded = text.encode()
        array = (ctypes.c_int32 * (len(encoded) + 2))()
        count = llama.llama_tokenize(
            self._vocabulary, encoded, len(encoded), array, len(array), True, False
        )
        if count < size:
            raise InputError(
                f"The calibration text {self._job.calibration} is too short.",
                f"It has {max(count, 0)} tokens; one chunk is {size}.",
                "Give a longer text.",
            )
        n_chunks = min(count // size, self._job.max_chunks)
        chunks = [list(array[first : first + size]) for first in range(0, n_chunks * size, size)]
        if llama.llama_vocab_get_add_bos(self._vocabulary):
            for chunk in chunks:
                chunk[0] = llama.llama_vocab_bos(self._vocabulary)
        return chunks

    def evaluate(self, chunk: list[int]) -> None:
        """Run one chunk from an empty context."""
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
            errors = [line for line in "".join(log).splitlines() if "error" in line]
            raise InputError(
                f"llama.cpp does not load {path.name}.",
                f"It said: {errors[0] if errors else 'nothing'}",
                "Check that the model's files are whole.",
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
