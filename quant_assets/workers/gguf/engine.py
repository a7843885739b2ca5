"""Quantize a model to a GGUF file in one pass, without an intermediate file.

Sources: `llama_model_quantize` (src/llama-quant.cpp) and convert_hf_to_gguf.py of llama.cpp, whose
output this equals byte for byte. The recipe:

1. llama.cpp's own policy chooses the type of every tensor; header and offsets follow (`plan`).
2. Threads read chunks of rows from the source, quantize them with ggml's arithmetic and write each
   to its final place in the file (`pipeline`, `chunks`).
3. The finished file is hashed, loaded by llama.cpp and renamed.

Life cycle: the `.part` file is locked for the whole run, and its journal records every finished
layer, so that a killed run resumes after the last one; the record beside the output lets a later
run of the same job reuse it.
"""

import hashlib
import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from quant_assets.artifacts.job import library_versions
from quant_assets.artifacts.output_record import settle_record
from quant_assets.atomic_files import replace_durably
from quant_assets.host.resources import (
    check_disk,
    check_memory,
    check_output_folder,
)
from quant_assets.models.identity import sha256_of
from quant_assets.processes.memory import resident_memory
from quant_assets.processes.protocol import EventChannel
from quant_assets.quantize.gguf.job import (
    QuantizeGgufJob,
    QuantizeGgufResult,
    ValidateGgufJob,
    ValidateGgufResult,
    validate_gguf,
)
from quant_assets.workers.gguf.finished import finished_result, library_identity
from quant_assets.workers.gguf.kernels.quantizer import Quantizer
from quant_assets.workers.gguf.part_file import PartFile, opened_part_file, resume_point
from quant_assets.workers.gguf.pipeline import QUANTIZE, write_layers
from quant_assets.workers.gguf.prepare import CHECK, PLAN, Prepared, prepared

_VALIDATE = "validate"


def quantize_and_report(job: QuantizeGgufJob, channel: EventChannel) -> QuantizeGgufResult:
    """`quantize` as a job of its own, with numbered steps."""
    shares = {CHECK: 1.0, PLAN: 4.0, QUANTIZE: 85.0}
    channel.plan_steps(shares | ({_VALIDATE: 10.0} if job.validate_output else {}))
    return quantize(job, channel)


def quantize(job: QuantizeGgufJob, channel: EventChannel) -> QuantizeGgufResult:
    """Write the file `job.output`; see `quant_assets.quantize.gguf.job.quantize_gguf`."""
    started = time.perf_counter()
    check_output_folder(job.output.parent)
    with prepared(job, channel) as work, opened_part_file(job.output) as part:
        identity = _identity(job, work)
        finished = finished_result(
            job,
            identity,
            QuantizeGgufResult,
            channel,
            suffices=lambda result: result.validated or not job.validate_output,
        )
        if finished is not None:
            return finished.model_copy(update={"reused": True})
        _check_resources(job.output.parent, part, work)
        return _write(job, work, part, identity, started, channel)


def _write(
    job: QuantizeGgufJob,
    work: Prepared,
    part: PartFile,
    identity: dict[str, str],
    started: float,
    channel: EventChannel,
) -> QuantizeGgufResult:
    """Quantize the unfinished layers, validate the file and move it to its final name."""
    plan = work.plan
    first_layer = resume_point(part, plan, identity, channel, resume=job.resume)
    quantizer = Quantizer(
        (tensor.target_type for tensor in plan.tensors),
        on_fallback=lambda reason: channel.log(reason, "warning"),
    )
    n_written = write_layers(work, part, quantizer, first_layer, channel)
    digest, validation = _validate(job, part.path, channel)
    memory = channel.memory_usage()
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
        peak_rss_bytes=memory.peak_rss_bytes,
        peak_own_bytes=memory.peak_own_bytes,
        peak_vram_bytes=memory.peak_vram_bytes,
        bytes_written=n_written,
        validated=validation is not None,
        generated_text=validation.generated_text if validation else None,
        quantization_job=channel.completed_job(memory),
    )
    part.check_name()
    settle_record(job, identity, digest, result)
    replace_durably(part.path, job.output)
    part.journal.remove()
    return result


def _check_resources(folder: Path, part: PartFile, work: Prepared) -> None:
    # What an earlier run wrote occupies its space already.
    check_disk(folder, max(0, work.plan.file_bytes - part.size_on_disk))
    check_memory(work.peak_memory_bytes - resident_memory()[0])


def _identity(job: QuantizeGgufJob, work: Prepared) -> dict[str, str]:
    """Everything that determines the output's bytes."""
    return {
        "source": job.source_identity,
        "level": work.level.name,
        "importance_matrix": sha256_of(job.imatrix) if job.imatrix else "none",
        "header": hashlib.sha256(work.plan.header).hexdigest(),
        **library_identity(),
    }


def _validate(
    job: QuantizeGgufJob, path: Path, channel: EventChannel
) -> tuple[str, ValidateGgufResult | None]:
    """The SHA-256 of the finished file, and the result of loading it if requested."""
    if not job.validate_output:
        return sha256_of(path), None
    channel.progress(_VALIDATE, 0, 1, "steps")
    # This process reports to the run's log; the child must not report a second time.
    os.environ.pop("DAGSTER_PIPES_CONTEXT", None)
    with ThreadPoolExecutor(1) as hasher:
        digest = hasher.submit(sha256_of, path)
        validation = validate_gguf(ValidateGgufJob(path=path, threads=job.threads))
        channel.progress(_VALIDATE, 1, 1, "steps")
        return digest.result(), validation
