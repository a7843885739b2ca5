"""Jobs of the benchmark workers and their results."""

from typing import Final

from pydantic import BaseModel, ConfigDict

from quant_assets.formats.artifact_formats import RunnableFormat
from quant_assets.host.conditions import HostConditions
from quant_assets.host.devices import Device
from quant_assets.record_files import Count

LOAD: Final = "load"
WARM_UP: Final = "warm-up"
RUNS: Final = "runs"
PERPLEXITY: Final = "perplexity"
OBEDIENCE: Final = "obedience"


class CellJob(BaseModel):
    """One cell of the matrix: a model file or folder, how it is run, and how often."""

    model_config = ConfigDict(frozen=True)

    model_path: str
    format: RunnableFormat
    batch_size: int
    prompt_tokens: int
    generated_tokens: int
    warmups: int
    runs: int
    threads: int
    device: Device = "auto"
    cache_type_k: str = "f16"
    cache_type_v: str = "f16"


class RunSample(BaseModel):
    """One run in milliseconds: the prefill of all prompts, then one step per generated token.

    `time_to_first_token_ms` ends when the logits of every prompt's last token are computed.
    """

    time_to_first_token_ms: float
    token_ms: list[float]
    total_ms: float


class CellMeasurement(BaseModel):
    """Measurements of a benchmark worker: times in milliseconds, memory in bytes.

    `kv_cache_bytes` is the allocation that the backend reports, `kv_cache_bytes_expected` is
    computed from layers, heads, cells and block sizes. Null: not measured.
    """

    load_time_ms: float | None
    samples: list[RunSample]
    peak_rss_bytes: int | None
    peak_own_bytes: int | None = None
    peak_vram_bytes: int | None = None
    kv_cache_bytes: int | None = None
    kv_cache_bytes_expected: int | None = None
    conditions: HostConditions | None
    library_versions: dict[str, str]
    build_flags: str
    cpu_name: str | None
    gpu_name: str | None
    device: str


class QualityJob(BaseModel):
    """Perplexity of a model on a text, and its divergence from a baseline if one is given.

    With `baseline_path`, text and windows are those of the baseline file, and `text_path` is not
    read. `save_baseline_path` writes such a file. `windows` limits the number scored.
    """

    model_config = ConfigDict(frozen=True)

    model_path: str
    format: RunnableFormat
    text_path: str | None = None
    baseline_path: str | None = None
    save_baseline_path: str | None = None
    context: int = 512
    windows: int | None = None
    threads: int
    device: Device = "auto"
    cache_type_k: str = "f16"
    cache_type_v: str = "f16"


class QualityMeasurement(BaseModel):
    """Quality of a model on a text. Divergences are in nats; null: no baseline was given.

    `perplexity_ratio` is over the baseline's perplexity on the same tokens; its standard error is
    that of paired tokens, much smaller than the two perplexities' own (null in older records).
    """

    perplexity: float
    perplexity_standard_error: float
    scored_tokens: Count
    windows: Count
    context: Count
    baseline_perplexity: float | None = None
    perplexity_ratio: float | None = None
    perplexity_ratio_standard_error: float | None = None
    kl_divergence: float | None = None
    kl_divergence_standard_error: float | None = None
    kl_divergence_median: float | None = None
    kl_divergence_p99: float | None = None
    kl_divergence_max: float | None = None
    top1_agreement: float | None = None
    seconds: float


class ChatJob(BaseModel):
    """Prompts that a model answers one by one, greedily, through its own chat template."""

    model_config = ConfigDict(frozen=True)

    model_path: str
    format: RunnableFormat
    prompts: list[str]
    max_tokens: int
    context: int = 2048
    threads: int
    device: Device = "auto"
    cache_type_k: str = "f16"
    cache_type_v: str = "f16"


class ChatReplies(BaseModel):
    """The answers, in the order of the prompts."""

    replies: list[str]
