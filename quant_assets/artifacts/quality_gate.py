"""The quality gate: the perplexity that a quantized model may have over its source's.

One limit for all formats: GPTQ and AWQ artifacts are rejected by it, GGUF variants fail an asset
check.
"""

from typing import Final

from quant_assets.window_intervals import Interval, certainly_exceeds

GATED_PARAMETERS: Final = 1_000_000_000
"""Smaller models lose more to quantization, so the limit does not apply to them."""
GATE_PERPLEXITY_RATIO: Final = 1.05
"""Q4_K_M, and 4 bits or more with GPTQ or AWQ: at most this ratio to the source's perplexity."""


def exceeds_gate(
    perplexity_ratio: float, n_parameters: int, interval: Interval | None = None
) -> bool:
    """Whether a model is large enough for the gate and its perplexity ratio certainly over the limit.

    Certainly: the whole 95% `interval` of the ratio is over it; without one, the ratio decides. A
    ratio that is not a number exceeds the limit.
    """
    return n_parameters >= GATED_PARAMETERS and certainly_exceeds(
        perplexity_ratio, interval, GATE_PERPLEXITY_RATIO
    )
