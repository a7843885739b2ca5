"""GGUF jobs for the worker `quant_assets.workers.gguf`, and its results.

The functions start that worker in a child process; nothing here loads a model. The engine writes
one output file and does not know the artifact store.
"""

from pathlib import Path
from typing import Final, Literal

from pydantic import BaseModel, Field

from quant_assets.errors import InputError
from quant_assets.formats.gguf_header import read_gguf_header
from quant_assets.formats.gguf_levels import GgufLevel
from quant_assets.processes.quantization_job import QuantizationJob
from quant_assets.processes.session import UNATTENDED, WorkerSession
from quant_assets.processes.supervisor import run_worker

SourceKind = Literal["hf", "gguf"]
Kernel = Literal["own", "ggml"]
TypePolicy = Literal["library", "dry_run"]

MOST_THREADS: Final = 512
"""llama.cpp's limit (GGML_MAX_N_THREADS)."""
DEFAULT_CHUNKS: Final = 100
DEFAULT_CHUNK_TOKENS: Final = 512
"""How much text an importance matrix is measured on, unless stated."""
_WORKER = "gguf"


class GgufPlanJob(BaseModel):
    """Plan a quantization without writing anything.

    `source` is a Hugging Face folder (`source_kind` hf) or an F16, BF16 or F32 GGUF file (gguf);
    `level` a name known to `quant_assets.formats.gguf_levels.parse_level`; `imatrix` a GGUF
    importance matrix; `threads` the number of quantizing threads, all cores when None.

    With `header`, the planned header is written there as a sparse file of the output's size. Then
    a tokenizer that is missing or unknown does not matter.
    """

    task: Literal["plan"] = "plan"
    source: Path
    source_kind: SourceKind
    level: str
    output: Path
    imatrix: Path | None = None
    threads: int | None = Field(default=None, ge=1, le=MOST_THREADS)
    header: Path | None = None


class TensorGroup(BaseModel):
    """All tensors of one role, such as `blk.*.attn_q.weight`, that get one type."""

    role: str
    tensor_type: str
    count: int
    n_parameters: int
    size_bytes: int


class GgufPlan(BaseModel):
    """The expected result of a quantization.

    `file_bytes` is the exact size of the output. `intermediate` is the float type that the weights
    pass through, as in a two-step conversion. `type_policy` says how the tensor types
    were obtained from llama.cpp. `estimated_seconds` extrapolates from samples quantized on this
    machine, without reading and loading.
    """

    architecture: str
    level: str
    intermediate: str
    type_policy: TypePolicy
    n_parameters: int
    n_layers: int
    file_bytes: int
    bits_per_weight: float
    groups: list[TensorGroup]
    estimated_seconds: float
    estimated_peak_bytes: int


class QuantizeGgufJob(BaseModel):
    """Quantize `source` to the file `output`; see `GgufPlanJob` for the shared fields.

    `source_identity` is a content hash of the source. With `resume` an interrupted run of the same
    job resumes after its last complete layer; otherwise it starts over. `validate_output` loads the
    file and generates a token before the file gets its final name.

    With `record`, a record beside the file names the job that made it, and the same job does
    nothing when its file is intact. `overwrite` allows replacing a file of another model or of
    unknown origin.
    """

    task: Literal["quantize"] = "quantize"
    source: Path
    source_kind: SourceKind
    source_identity: str
    level: str
    output: Path
    imatrix: Path | None = None
    threads: int | None = Field(default=None, ge=1, le=MOST_THREADS)
    resume: bool = True
    validate_output: bool = True
    record: bool = False
    overwrite: bool = True


class QuantizeGgufResult(BaseModel):
    """A finished GGUF file.

    Sizes and memory are bytes. `bits_per_weight` counts all tensor data over all parameters;
    `tensor_types` counts tensors by type; `kernels` names the implementation used for each quantized
    type (both produce the same bytes); `resumed_from_layer` is the index of the first layer of this
    run, null if it started from the beginning; `bytes_written` counts this run only.
    Peaks are those of the quantizing process (see `MemoryUsage`); validation runs in another.
    `reused` means that an earlier run made the file and that the figures are from that run.
    `quantization_job` is the final state of the run.
    """

    output: Path
    bytes: int
    sha256: str
    architecture: str
    level: str
    intermediate: str
    n_parameters: int
    n_layers: int
    bits_per_weight: float
    tensor_types: dict[str, int]
    type_policy: TypePolicy
    kernels: dict[str, Kernel]
    library_versions: dict[str, str]
    seconds: float
    cpu_seconds: float
    resumed_from_layer: int | None
    peak_rss_bytes: int
    peak_own_bytes: int | None = None
    peak_vram_bytes: int | None = None
    bytes_written: int
    validated: bool
    generated_text: str | None
    reused: bool = False
    quantization_job: QuantizationJob | None = None


class ImatrixJob(BaseModel):
    """Compute an importance matrix of `source` over the text in `calibration`.

    `chunk_tokens` tokens per chunk, at most `max_chunks` chunks. `calibration_name` is stored in
    the file as the name of the data set. `record` and `overwrite` are those of `QuantizeGgufJob`.
    """

    task: Literal["imatrix"] = "imatrix"
    source: Path
    source_kind: SourceKind
    source_identity: str
    calibration: Path
    calibration_name: str
    output: Path
    threads: int | None = Field(default=None, ge=1, le=MOST_THREADS)
    chunk_tokens: int = Field(default=DEFAULT_CHUNK_TOKENS, ge=1)
    max_chunks: int = Field(default=DEFAULT_CHUNKS, ge=1)
    record: bool = False
    overwrite: bool = True


class ImatrixResult(BaseModel):
    """A finished importance matrix: `n_entries` matrices, measured over `n_chunks` chunks."""

    output: Path
    bytes: int
    sha256: str
    n_entries: int
    n_chunks: int
    n_tokens: int
    partial_experts: int
    seconds: float
    peak_rss_bytes: int
    peak_own_bytes: int | None = None
    peak_vram_bytes: int | None = None
    quantization_job: QuantizationJob | None = None


class ValidateGgufJob(BaseModel):
    """Load a GGUF file and generate with it."""

    task: Literal["validate"] = "validate"
    path: Path
    threads: int | None = Field(default=None, ge=1, le=MOST_THREADS)
    n_tokens: int = 1
    prompt: str = "The"


class ValidateGgufResult(BaseModel):
    """Facts about the loaded file; `generated_text` is null for a model that cannot generate."""

    generated_text: str | None
    n_parameters: int
    seconds: float
    peak_rss_bytes: int
    peak_own_bytes: int | None = None
    peak_vram_bytes: int | None = None


def check_imatrix(level: GgufLevel, imatrix: Path | None) -> None:
    """Check from headers alone that a level has the importance matrix that it needs.

    Raises `InputError` when it is missing, or not a GGUF file.
    """
    if imatrix is not None:
        read_gguf_header(imatrix)
    elif level.needs_imatrix:
        raise InputError(
            f"The level {level} needs an importance matrix.",
            "llama.cpp rejects it without one, because the result would be unusable.",
            "Make one with `quant-assets imatrix MODEL` and pass it with --imatrix FILE, or use a level "
            "such as Q2_K or Q3_K_S.",
        )


def quantize_gguf(
    job: QuantizeGgufJob,
    *,
    session: WorkerSession = UNATTENDED,
) -> QuantizeGgufResult:
    """Quantize in one pass, bit-identical to converting and then `llama_model_quantize`.

    The reference converts to the source's own float type (bf16 to BF16, f16 to F16, f32 to F32), so
    nothing is lost before the quantization. Raises `InputError` for a damaged or unsupported
    source, `ResourceError` for too little disk or memory, `CheckFailed` when the finished file fails
    to load and generate.
    """
    return run_worker(_WORKER, job, QuantizeGgufResult, session=session)


def plan_gguf(
    job: GgufPlanJob,
    *,
    session: WorkerSession = UNATTENDED,
) -> GgufPlan:
    """Plan a quantization; raises what `quantize_gguf` raises before it starts work."""
    return run_worker(_WORKER, job, GgufPlan, session=session)


def make_imatrix(
    job: ImatrixJob,
    *,
    session: WorkerSession = UNATTENDED,
) -> ImatrixResult:
    """Run the source over a calibration text and store its activation statistics in GGUF.

    Raises `InputError` when the text is too short or the model's activations are not finite.
    """
    return run_worker(_WORKER, job, ImatrixResult, session=session)


def validate_gguf(
    job: ValidateGgufJob,
    *,
    session: WorkerSession = UNATTENDED,
) -> ValidateGgufResult:
    """Load a GGUF file and generate; raises `CheckFailed` if either fails."""
    return run_worker(_WORKER, job, ValidateGgufResult, session=session)
