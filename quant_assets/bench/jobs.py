"""Jobs of the benchmark workers and their results."""

from typing import Final

from pydantic import BaseModel, ConfigDict

from quant_assets.formats.artifact_formats import RunnableFormat
from quant_assets.host.conditions import HostConditions
from quant_assets.host.devices import Device
from quant_assets.record_files import Count
from quant_assets.window_intervals import (
    Interval,
    mean_interval,
    percentile_interval,
    ratio_interval,
)

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


class WindowSums(BaseModel):
    """Sums over the scored tokens of each window, in the order of the text, in nats.

    Every window has the same number of scored tokens. `tokens_over_p99` counts those of a window
    whose KL divergence is over the 99th percentile of all. All but `nll` need a baseline.
    """

    nll: list[float]
    baseline_nll: list[float] | None = None
    kl_divergence: list[float] | None = None
    tokens_over_p99: list[Count] | None = None


class QualityMeasurement(BaseModel):
    """Quality of a model on a text. Divergences are in nats; null: no baseline was given.

    `perplexity_ratio` is over the baseline's perplexity on the same tokens. Standard errors are
    llama.cpp's, of single tokens (of paired ones for the ratio). The intervals are at 95%, with the
    window as the unit: see `window_intervals.py`. Older records have no `window_sums`, and
    therefore no intervals. `kl_divergence_largest` has the largest divergences of single tokens, in
    descending order, as many as the interval of the 99th percentile needs.
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
    window_sums: WindowSums | None = None
    kl_divergence_largest: list[float] | None = None
    seconds: float

    @property
    def perplexity_ratio_interval(self) -> Interval | None:
        """The interval of `perplexity_ratio`, paired by window."""
        sums = self.window_sums
        if sums is None or sums.baseline_nll is None:
            return None
        return ratio_interval(self._per_token(sums.nll), self._per_token(sums.baseline_nll))

    @property
    def kl_divergence_interval(self) -> Interval | None:
        """The interval of `kl_divergence`, in nats."""
        sums = self.window_sums
        if sums is None or sums.kl_divergence is None:
            return None
        return mean_interval(self._per_token(sums.kl_divergence))

    @property
    def kl_divergence_p99_interval(self) -> Interval | None:
        """The interval of `kl_divergence_p99`, in nats."""
        sums = self.window_sums
        if sums is None or sums.tokens_over_p99 is None or self.kl_divergence_largest is None:
            return None
        shares = [count * self.windows / self.scored_tokens for count in sums.tokens_over_p99]
        return percentile_interval(shares, self.kl_divergence_largest, self.scored_tokens, 99)

    @property
    def window_nll(self) -> list[float] | None:
        """The mean negative log-likelihood per token of each window, in nats."""
        return None if self.window_sums is None else self._per_token(self.window_sums.nll)

    def _per_token(self, sums: list[float]) -> list[float]:
        return [value * len(sums) / self.scored_tokens for value in sums]


class KvCacheQualityJob(BaseModel):
    """What the types of a KV cache cost, against an F16 cache with the same weights and tokens.

    Tokens are scored at the end of each of `contexts` in `windows` windows of a text; contexts are
    capped at the model's own and at half the text.
    """

    model_config = ConfigDict(frozen=True)

    model_path: str
    text_path: str
    contexts: tuple[int, ...]
    windows: int
    threads: int
    device: Device = "auto"
    cache_type_k: str
    cache_type_v: str


class KvCacheMeasurement(BaseModel):
    """One measurement per context, in ascending order; the baseline is the F16 cache."""

    contexts: list[QualityMeasurement]


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
