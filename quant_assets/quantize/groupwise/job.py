"""GPTQ and AWQ jobs for their workers, the results, and the checks before any work.

A job turns a Hugging Face folder into one whose linear layers are packed by groups. It does not
know the artifact store; `quantize.groupwise.artifact` puts the folder there.
"""

from pathlib import Path
from typing import Final, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field

from quant_assets.errors import InputError
from quant_assets.formats.artifact_formats import GroupwiseFormat
from quant_assets.formats.group_quantization import PER_CHANNEL, GroupQuantization
from quant_assets.host.devices import Device
from quant_assets.models.inspection import ModelShape
from quant_assets.processes.environments import EnvironmentName
from quant_assets.processes.quantization_job import QuantizationJob
from quant_assets.processes.session import UNATTENDED, WorkerSession
from quant_assets.processes.supervisor import run_worker

Engine = Literal["gptqmodel", "autoawq"]


class CalibrationSize(NamedTuple):
    """Windows of calibration text, and tokens per window."""

    samples: int
    sequence_length: int

    @property
    def n_tokens(self) -> int:
        """Tokens of all windows."""
        return self.samples * self.sequence_length

    def __str__(self) -> str:
        return f"{self.samples} samples of {self.sequence_length} tokens"


STANDARD_SIZE: Final[dict[GroupwiseFormat, CalibrationSize]] = {
    "gptq": CalibrationSize(128, 2048),
    "awq": CalibrationSize(128, 512),
}
"""GPTQ as in its paper (arXiv:2210.17323, section 4); AWQ as AutoAWQ 0.2.9's defaults."""
FEWEST_TOKENS: Final = 8
"""The shortest window that calibrates anything."""
JOURNAL_NAME: Final = "journal.jsonl"
"""In a job's work folder, one line per finished layer."""

DEFAULT_ENGINE: Final[dict[GroupwiseFormat, Engine]] = {"gptq": "gptqmodel", "awq": "autoawq"}
AUTOAWQ_ARCHITECTURES: Final = frozenset({
    "RefinedWeb", "RefinedWebModel", "Yi", "aquila", "baichuan", "bloom", "cohere", "deepseek_v2",
    "deepseek_v3", "exaone", "falcon", "gemma", "gemma2", "gpt_bigcode", "gpt_neox", "gptj",
    "internlm2", "llama", "llava", "llava_next", "minicpm", "minicpm3", "mistral", "mixtral", "mpt",
    "opt", "phi3", "phi3_v", "qwen", "qwen2", "qwen2_5_omni", "qwen2_5_vl", "qwen2_vl", "qwen3",
    "qwen3_moe", "stablelm", "starcoder2",
})  # fmt: skip
"""Architectures of AutoAWQ 0.2.9; the project is archived, so the list is final."""
ENVIRONMENT: Final[dict[Engine, EnvironmentName]] = {"gptqmodel": "gptq", "autoawq": "awq"}
# gptqmodel's loader and kernels require at least two workers, even on a machine with one core;
# threads that spin while waiting slow down everything else on a machine with few cores.
WORKER_VARIABLES: Final = {"GPTQMODEL_CPU_WORKERS": "2", "OMP_WAIT_POLICY": "PASSIVE"}
_LIBRARY_BYTES: Final = 800_000_000  # Python, torch and the quantizers' libraries, measured
_FLOAT_BYTES: Final = 4
# A layer, its statistics without gradients, and the candidates of a search.
_LAYER_COPIES: Final = 6
_PACKED_OUT_FEATURES: Final = {2: 16, 3: 32, 4: 8, 8: 4}


class GroupwiseSettings(BaseModel):
    """How weights are packed and calibrated.

    `desc_act` orders columns by their activations (act-order; GPTQ only). `sym` centers the zero
    point; AWQ here always stores one. `samples` windows of `sequence_length` tokens are taken at
    even distances from the calibration text.
    """

    model_config = ConfigDict(frozen=True)

    format: GroupwiseFormat
    bits: int = 4
    group_size: int = 128
    desc_act: bool = False
    sym: bool = True
    engine: Engine = "gptqmodel"
    samples: int = Field(ge=1)
    sequence_length: int = Field(ge=FEWEST_TOKENS)

    @property
    def quantization(self) -> GroupQuantization:
        """Method, bits and group size."""
        return GroupQuantization(method=self.format, bits=self.bits, group_size=self.group_size)

    @property
    def calibration_size(self) -> CalibrationSize:
        """Samples and sequence length."""
        return CalibrationSize(self.samples, self.sequence_length)


class GroupwiseJob(BaseModel):
    """Quantize the folder `source` to the folder `output`, with unfinished layers in `work`."""

    source: Path
    source_identity: str
    output: Path
    work: Path
    settings: GroupwiseSettings
    calibration: Path
    calibration_identity: str
    threads: int | None = None
    device: Device = "auto"
    resume: bool = True


class GroupwiseResult(BaseModel):
    """A finished GPTQ or AWQ folder.

    Sizes and memory are bytes, times seconds of this run. `bits_per_weight` counts all tensor data
    over all parameters. `resumed_from_layer` is the first layer of this run, null if it started
    from the beginning.
    """

    files: list[str]
    bytes: int
    expected_bytes: int
    architecture: str
    n_parameters: int
    n_layers: int
    bits_per_weight: float
    tensor_types: dict[str, int]
    calibration_tokens: int
    device: str
    library_versions: dict[str, str]
    seconds: float
    seconds_per_layer: float
    resumed_from_layer: int | None
    peak_rss_bytes: int
    peak_own_bytes: int | None = None
    peak_vram_bytes: int | None
    quantization_job: QuantizationJob | None = None


def default_engine(method: GroupwiseFormat, architecture: str | None) -> Engine:
    """The engine for a `model_type` of config.json; None stands for a supported one."""
    if method == "awq" and architecture and architecture not in AUTOAWQ_ARCHITECTURES:
        return "gptqmodel"
    return DEFAULT_ENGINE[method]


def groupwise_settings(
    quantization: GroupQuantization,
    *,
    architecture: str | None = None,
    engine: Engine | None = None,
    desc_act: bool = False,
    sym: bool | None = None,
    samples: int | None = None,
    sequence_length: int | None = None,
) -> GroupwiseSettings:
    """Validated settings of a job; raises `InputError` for an unsupported combination.

    Without an `engine`, the preferred one that supports the model's `architecture` is taken. GPTQ
    is symmetric unless `sym` is False. Numbers left out are those of `STANDARD_SIZE`;
    `quantize.groupwise.calibration` fits them to text and memory.
    """
    method = quantization.method
    standard = STANDARD_SIZE[method]
    if method == "awq" and sym:
        raise InputError(
            "AWQ is not symmetric.",
            "Its GEMM layout stores a zero point for every group.",
            "Omit --sym, or use --to gptq.",
        )
    if method == "awq" and desc_act:
        raise InputError(
            "AWQ has no act-order.",
            "Its format stores no group index.",
            "Omit --desc-act, or use --to gptq.",
        )
    if method == "gptq" and engine == "autoawq":
        raise InputError(
            "AutoAWQ does not write GPTQ.", "It supports AWQ only.", "Use the engine gptqmodel."
        )
    if method == "awq" and quantization.group_size == PER_CHANNEL:
        raise InputError(
            "AWQ with one group per row is not supported.",
            "The kernels that read its GEMM layout take groups of 32, 64 or 128.",
            "Use --group-size 128.",
        )
    return GroupwiseSettings(
        format=method,
        bits=quantization.bits,
        group_size=quantization.group_size,
        desc_act=desc_act,
        sym=sym is not False and method == "gptq",
        engine=engine or default_engine(method, architecture),
        samples=samples or standard.samples,
        sequence_length=sequence_length or standard.sequence_length,
    )


def check_shape(shape: ModelShape, settings: GroupwiseSettings) -> None:
    """Raise `InputError` when the model's matrices do not fit the groups or the packing."""
    query_rows = shape.n_heads * shape.head_dim_k
    inputs = {"hidden size": shape.hidden_size, "attention size": query_rows}
    if shape.intermediate_size:
        inputs["intermediate size"] = shape.intermediate_size
    if shape.n_experts:
        raise InputError(
            f"Mixture-of-experts models ({shape.architecture}) cannot be quantized to "
            f"{settings.format.upper()} here.",
            "Their experts are stored as one tensor, which the layer loop does not split.",
            "Use --to gguf, which quantizes experts.",
        )
    if settings.group_size != PER_CHANNEL:
        for name, size in inputs.items():
            if size % settings.group_size:
                fitting = [
                    str(g) for g in (128, 64, 32) if all(v % g == 0 for v in inputs.values())
                ]
                raise InputError(
                    f"Groups of {settings.group_size} do not divide this model's {name} {size}.",
                    "Every row is split into whole groups.",
                    f"Use --group-size {' or '.join(fitting)}."
                    if fitting
                    else "Use --group-size -1 with --to gptq.",
                )
    multiple = max(_PACKED_OUT_FEATURES[settings.bits], 8 if settings.format == "awq" else 1)
    outputs = {**inputs, "key and value size": shape.n_kv_heads * shape.head_dim_k}
    for name, size in outputs.items():
        if size % multiple or size % 32:
            raise InputError(
                f"Kernels cannot pack this model's {name} {size} at {settings.bits} bits.",
                "Packed tensors hold whole 32-bit words, in tiles of 32 rows.",
                "Use --to gguf.",
            )


def memory_needed(shape: ModelShape, method: GroupwiseFormat, size: CalibrationSize) -> int:
    """Bytes of memory that a job takes at its peak, estimated from the model's shape.

    Libraries, one layer with its statistics and candidates (or the embeddings, if larger), what is
    kept per calibration token, and one window's activations.
    """
    hidden, inner = shape.hidden_size, shape.intermediate_size
    layer = shape.n_linear_parameters // shape.n_layers
    embedding = shape.vocab_size * hidden
    # Inputs of the next layer as windows and joined, this layer's, and a copy while they are saved.
    per_token = 4 * hidden
    if method == "awq":
        # Every matrix keeps its inputs (query, key, value, gate and up, then output and down); the
        # search adds outputs of candidates and the absolute inputs of the widest matrix. Measured
        # between 16,384 and 65,536 tokens: 8.3 KB per token where this gives 8.2.
        attention = shape.n_heads * shape.head_dim_k
        per_token += 7 * hidden + attention + inner + max(2 * hidden, inner)
    scores = shape.n_heads * size.sequence_length**2
    window = size.sequence_length * (4 * hidden + 3 * inner) + 2 * scores
    kept = size.n_tokens * per_token
    return _LIBRARY_BYTES + _FLOAT_BYTES * (max(embedding, _LAYER_COPIES * layer) + kept + window)


def text_too_short(name: str, n_tokens: int, size: CalibrationSize) -> InputError:
    """The error for a calibration text with fewer tokens than `size` takes."""
    return InputError(
        f"The calibration text {name} is too short.",
        f"It has {n_tokens} tokens; {size} need {size.n_tokens}.",
        "Use a longer text, or fewer or shorter samples "
        "(--calibration-samples, --sequence-length).",
    )


def quantize_groupwise(
    job: GroupwiseJob,
    *,
    session: WorkerSession = UNATTENDED,
) -> GroupwiseResult:
    """Quantize layer by layer, resumable after each layer; the result is not validated.

    Raises `InputError` for a source or calibration text that cannot be used, `ResourceError` for
    too little disk or memory, `EnvironmentNotReady` when the engine's environment is missing.
    """
    # AutoAWQ uses any GPU that it can see.
    hidden_gpu = {"CUDA_VISIBLE_DEVICES": ""} if job.device == "cpu" else {}
    return run_worker(
        f"groupwise.{job.settings.format}",
        job,
        GroupwiseResult,
        environment=ENVIRONMENT[job.settings.engine],
        session=session.with_defaults(
            {**WORKER_VARIABLES, "TOKENIZERS_PARALLELISM": "false", **hidden_gpu}
        ),
    )
