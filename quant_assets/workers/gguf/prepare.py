"""Preparation of a quantization: open the source, plan the output, estimate time and memory."""

import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from quant_assets.formats.gguf_levels import GgufLevel, parse_level
from quant_assets.models.integrity import check_hf_folder
from quant_assets.processes.protocol import EventChannel
from quant_assets.quantize.gguf.job import GgufPlan, GgufPlanJob, QuantizeGgufJob, check_imatrix
from quant_assets.workers.gguf import ggml
from quant_assets.workers.gguf.chunks import CHUNK_ELEMENTS
from quant_assets.workers.gguf.hf_source import HuggingFaceSource
from quant_assets.workers.gguf.imatrix_file import ImatrixFile, read_imatrix
from quant_assets.workers.gguf.kernels.quantizer import Quantizer
from quant_assets.workers.gguf.plan import FilePlan, make_plan
from quant_assets.workers.gguf.source import GgufSource, Source

# Measured for the process with its libraries loaded, with some margin.
_BASE_MEMORY_BYTES = 350_000_000
_BYTES_PER_CHUNK_ELEMENT = 12  # upper bound for source, float32 and target together
CHUNKS_IN_FLIGHT_PER_THREAD = 3
CHECK, PLAN = "check", "plan"


@dataclass
class Prepared:
    """An open source and the plan of its output."""

    source: Source
    plan: FilePlan
    level: GgufLevel
    imatrix: ImatrixFile | None
    threads: int

    @property
    def peak_memory_bytes(self) -> int:
        """Peak memory of the run: two computed tensors at once, and the buffers."""
        computed = [self.source.memory_bytes(tensor.name) for tensor in self.plan.tensors]
        chunks = self.threads * (1 + CHUNKS_IN_FLIGHT_PER_THREAD)
        largest_row = max(tensor.row_elements for tensor in self.plan.tensors)
        buffers = chunks * _BYTES_PER_CHUNK_ELEMENT * max(CHUNK_ELEMENTS, largest_row)
        return _BASE_MEMORY_BYTES + sum(sorted(computed)[-2:]) + buffers


@contextmanager
def prepared(
    job: GgufPlanJob | QuantizeGgufJob, channel: EventChannel, *, any_vocabulary: bool = False
) -> Iterator[Prepared]:
    """Check the source, open it and plan the output; writes nothing of the output.

    With `any_vocabulary` a tokenizer that cannot be converted is left out. Raises `InputError` for an unusable source, level or importance matrix.
    """
    channel.progress(CHECK, 0, 1, "steps")
    level = parse_level(job.level)
    check_imatrix(level, job.imatrix)
    imatrix = read_imatrix(job.imatrix) if job.imatrix else None
    if job.source_kind == "hf":
        check_hf_folder(job.source)
    channel.progress(CHECK, 1, 1, "steps")
    channel.progress(PLAN, 0, 1, "steps")
    with tempfile.TemporaryDirectory(prefix="quant-assets-") as scratch:
        source: Source = (
            HuggingFaceSource(job.source, Path(scratch), any_vocabulary=any_vocabulary)
            if job.source_kind == "hf"
            else GgufSource(job.source)
        )
        plan = make_plan(source.metadata, level, imatrix)
    channel.progress(PLAN, 1, 1, "steps")
    yield Prepared(source, plan, level, imatrix, job.threads or os.cpu_count() or 1)


def plan_only(job: GgufPlanJob, channel: EventChannel) -> GgufPlan:
    """The output that a run would write, after the same checks."""
    channel.plan_steps({CHECK: 10, PLAN: 90})
    with prepared(job, channel, any_vocabulary=job.header is not None) as work:
        plan = work.plan
        if job.header is not None:
            job.header.write_bytes(plan.header)
            os.truncate(job.header, plan.file_bytes)
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
    """Time one chunk of each type on one core, and extrapolate."""
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
