"""The quality gate: the perplexity that a quantized model may have over its source's.

One limit for all formats: GPTQ and AWQ artifacts are rejected by it, GGUF variants fail an asset
check.
"""

from typing import Final

GATED_PARAMETERS: Final = 1_000_000_000
"""Smaller models lose more to quantization, so the limit does not apply to them."""
GATE_PERPLEXITY_RATIO: Final = 1.05
"""Q4_K_M, and 4 bits or more with GPTQ or AWQ: at most this ratio to the source's perplexity."""


def exceeds_gate(perplexity_ratio: float, n_parameters: int) -> bool:
    """Whether a model is large enough for the gate and its perplexity ratio over the limit.

    A ratio that is not a number exceeds it.
    """
    return n_parameters >= GATED_PARAMETERS and not perplexity_ratio <= GATE_PERPLEXITY_RATIO
