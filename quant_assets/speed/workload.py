"""The work of one pass of a model through a processor: what a speed model predicts the time of."""

from dataclasses import dataclass
from typing import Literal

Phase = Literal["decode", "prefill"]

GpuBackend = Literal["CUDA", "HIP", "Vulkan", "SYCL", "Metal"]


@dataclass(frozen=True, slots=True)
class Workload:
    """A decoding step of `batch` sequences, or the prefill of one prompt per sequence.

    `weight_type` is the ggml type of most weights (`Q4_K`), or `gptq-4bit`, `awq-4bit` for
    checkpoints. `weight_bytes` are read once per pass, in which `tokens_per_pass` tokens share them:
    `batch` in decoding, a micro-batch in prefill. `parameters` are those that multiply one token.
    `tokens` pass in total: `batch` in decoding, all prompt tokens in prefill. `kv_bytes` are read
    by a decoding step of all sequences at their mean depth; in prefill they are 0.
    `attention_flops` are the operations of Q x K and weights x V of the whole step or prefill.
    `recurrent`: some layers keep a state in place of a KV cache. `engine_year` is the engine's
    release as a year with decimals; None stands for a current one.
    """

    phase: Phase
    engine: str
    backend: GpuBackend
    weight_type: str
    weight_bytes: float
    parameters: float
    layers: int
    batch: int
    tokens: int
    tokens_per_pass: int
    kv_bytes: float
    attention_flops: float
    sparse: bool = False
    flash_attention: bool = True
    engine_year: float | None = None
    recurrent: bool = False


@dataclass(frozen=True, slots=True)
class Prediction:
    """Throughput of all sequences together in tokens/s with its 90 % interval.

    `rests_on` names the closest scope with runs: `this GPU`, `its architecture`, `its maker` or
    `all GPUs`; `runs` is their number.
    """

    tokens_per_s: float
    low: float
    high: float
    rests_on: str
    runs: int


@dataclass(frozen=True, slots=True)
class Observation:
    """A measured throughput (tokens/s of all sequences) of `workload` on a GPU of the registry.

    `weight` is its weight in a fit: below 1 for figures that are less exact than a tool's test.
    """

    gpu: str
    workload: Workload
    tokens_per_s: float
    weight: float = 1.0
