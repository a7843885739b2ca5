"""GPTQ and AWQ jobs for their workers, the results, and the checks before any work.

A job turns a Hugging Face folder into one whose linear layers are packed by groups. It does not
know the artifact store; `quantize.groupwise.artifact` puts the folder there.
"""

from pathlib import Path
from typing import Final, Literal

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

DEFAULT_ENGINE: Final[dict[GroupwiseFormat, Engine]] = {"gptq": "gptqmodel", "awq": "autoawq"}
AUTOAWQ_ARCHITECTURES: Final = frozenset({
    "RefinedWeb", "RefinedWebModel", "Yi", "aquila", "baichuan", "bloom", "cohere", "deepseek_v2",
    "deepseek_v3", "exaone", "falcon", "gemma", "gemma2", "gpt_bigcode", "gpt_neox", "gptj",
    "internlm2", "llama", "llava", "llava_next", "minicpm", "minicpm3", "mistral", "mixtral", "mpt",
    "opt", "phi3", "phi3_v", "qwen", "qwen2", "qwen2_5_omni", "qwen2_5_vl", "qwen2_vl", "qwen3",
    "qwen3_moe", "stablelm", "starcoder2",
})  # fmt: skip
"""Architectures of AutoAWQ 0.2.9; the project is archived, so the list is final."""
DEFAULT_SAMPLES: Final = 32
DEFAULT_SEQUENCE_LENGTH: Final = 512
ENVIRONMENT: Final[dict[Engine, EnvironmentName]] = {"gptqmodel": "gptq", "autoawq": "awq"}
# gptqmodel's loader and kernels require at least two workers, even on a machine with one core;
# threads that spin while waiting slow down everything else on a machine with few cores.
WORKER_VARIABLES: Final = {"GPTQMODEL_CPU_WORKERS": "2", "OMP_WAIT_POLICY": "PASSIVE"}
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
    samples: int = Field(default=DEFAULT_SAMPLES, ge=1)
    sequence_length: int = Field(default=DEFAULT_SEQUENCE_LENGTH, ge=8)

    @property
    def quantization(self) -> GroupQuantization:
        """Method, bits and group size."""
        return GroupQuantization(method=self.format, bits=self.bits, group_size=self.group_size)


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
    sym: bool = True,
    samples: int = DEFAULT_SAMPLES,
    sequence_length: int = DEFAULT_SEQUENCE_LENGTH,
) -> GroupwiseSettings:
    """Validated settings of a job; raises `InputError` for an unsupported combination.

    Without an `engine`, the preferred one that supports the model's `architecture` is taken.
    """
    method = quantization.method
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
        sym=sym and method == "gptq",
        engine=engine or default_engine(method, architecture),
        samples=samples,
        sequence_length=sequence_length,
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
