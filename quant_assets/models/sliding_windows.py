"""Which layers of a model attend to a sliding window, where its files leave that to the runtime.

Sources: `load_swa_pattern` and `load_arch_hparams` of llama.cpp (src/models/) for GGUF files, the
configuration classes of transformers for config.json.
"""

from collections.abc import Mapping
from typing import Any, Final, NamedTuple


class _Period(NamedTuple):
    """Of every `length` layers one attends to everything: the last, or the first.

    A length of 0 means that every layer slides. `window` stands in for a missing one.
    """

    length: int
    full_first: bool = False
    window: int | None = None

    def layers(self, n_layers: int) -> tuple[bool, ...]:
        """Whether each layer slides."""
        if not self.length:
            return (True,) * n_layers
        full = 0 if self.full_first else self.length - 1
        return tuple(layer % self.length != full for layer in range(n_layers))


class SlidingWindow(NamedTuple):
    """The window in tokens, and whether each layer has it; without a window no layer slides."""

    tokens: int | None
    layers: tuple[bool, ...]


GGUF_PERIODS: Final = {
    "afmoe": _Period(4),
    "cohere2": _Period(4),
    "cohere2moe": _Period(4, full_first=True),
    "deepseek4": _Period(0),
    "exaone-moe": _Period(4, window=128),
    "exaone4": _Period(4, window=4096),
    "gemma-embedding": _Period(6),
    "gemma2": _Period(2, window=4096),
    "gemma3": _Period(6),
    "gemma3n": _Period(5),
    "gpt-oss": _Period(2),
    "laguna": _Period(4, full_first=True),
    "lfm2": _Period(0),
    "llama4": _Period(4, window=8192),
    "mellum": _Period(4),
    "modern-bert": _Period(3, full_first=True),
    "muse-glimmer": _Period(4),
    "olmo2": _Period(4),
    "plamo3": _Period(8),
    "smallthinker": _Period(4, full_first=True),
}
"""The pattern of architectures whose files may leave it to llama.cpp."""
_GGUF_FIXED_WINDOWS: Final = {"llama4": 8192, "smallthinker": 4096}
"""llama.cpp uses this window whatever the file says, unless it says 0 (or nothing: SmallThinker)."""
_GGUF_FULL: Final = frozenset({"phi3"})
"""llama.cpp disregards the window of these."""
_EXAONE4_SLIDING_LAYERS: Final = 64  # only the model with 64 layers slides

_HF_PERIODS: Final = {
    "afmoe": _Period(4, window=1024),
    "cohere2": _Period(4, window=4096),
    "cohere2_moe": _Period(4, window=4096),
    "cwm": _Period(4, full_first=True, window=8192),
    "deepseek_v4": _Period(0, window=128),
    "exaone4": _Period(4),
    "exaone_moe": _Period(4, window=4096),
    "gemma2": _Period(2, window=4096),
    "gemma3": _Period(6, window=4096),
    "gemma3_text": _Period(6, window=4096),
    "gemma3n_text": _Period(5, window=512),
    "gemma4": _Period(6, window=512),
    "gemma4_text": _Period(6, window=512),
    "gpt_oss": _Period(2, window=128),
    "granite_swa": _Period(4, full_first=True, window=128),
    "granitemoe_swa": _Period(4, full_first=True, window=128),
    "llama4": _Period(4, window=8192),
    "llama4_text": _Period(4, window=8192),
    "ministral": _Period(0, window=4096),
    "modernbert": _Period(3, full_first=True, window=128),
    "muse_glimmer": _Period(4, window=2048),
    "olmo3": _Period(4, window=4096),
}
_WINDOW_KEYS: Final = ("sliding_window", "attention_chunk_size", "local_attention")
_PERIOD_KEYS: Final = ("sliding_window_pattern", "_sliding_window_pattern",
                       "global_attn_every_n_layers")  # fmt: skip
_SLIDING_TYPES: Final = frozenset({"sliding_attention", "chunked_attention"})


def gguf_sliding_window(
    architecture: str, window: object, pattern: object, n_layers: int
) -> SlidingWindow:
    """The window of a GGUF file with the values `window` and `pattern` (None where it has none)."""
    none = SlidingWindow(None, (False,) * n_layers)
    period = GGUF_PERIODS.get(architecture)
    declared = window if isinstance(window, int) and not isinstance(window, bool) else None
    if architecture in _GGUF_FULL or declared == 0:
        return none
    if architecture == "exaone4" and n_layers != _EXAONE4_SLIDING_LAYERS:
        return none
    tokens = declared
    if period is not None and declared is None:
        tokens = period.window
    if tokens is None or tokens < 0:
        return none
    tokens = _GGUF_FIXED_WINDOWS.get(architecture, tokens)
    if isinstance(pattern, tuple):
        return SlidingWindow(tokens, _of_length(tuple(bool(item) for item in pattern), n_layers))
    if isinstance(pattern, int) and not isinstance(pattern, bool) and pattern > 1:
        full_first = period.full_first if period is not None else False
        return SlidingWindow(tokens, _Period(pattern, full_first=full_first).layers(n_layers))
    if period is None:
        return SlidingWindow(tokens, (False,) * n_layers)
    return SlidingWindow(tokens, period.layers(n_layers))


def hf_sliding_window(fields: Mapping[str, Any], n_layers: int) -> SlidingWindow:
    """The window of a config.json with `fields`.

    `layer_types` decide where they are listed; then the period that the file gives; then that of the
    model's type. Configurations that switch the window off have none.
    """
    none = SlidingWindow(None, (False,) * n_layers)
    period = _HF_PERIODS.get(str(fields.get("model_type")))
    tokens = next((fields[key] for key in _WINDOW_KEYS if fields.get(key) is not None), None)
    listed = any(key in fields for key in _WINDOW_KEYS)
    if tokens is None and period is not None and not listed:
        tokens = period.window
    # Some models disable it with -1.
    if type(tokens) is not int or tokens <= 0 or fields.get("use_sliding_window") is False:
        return none
    layer_types = listed_layer_types(fields, n_layers)
    if layer_types is not None:
        return SlidingWindow(tokens, tuple(kind in _SLIDING_TYPES for kind in layer_types))
    first_sliding = fields.get("max_window_layers")
    if fields.get("use_sliding_window") is True and type(first_sliding) is int:
        return SlidingWindow(tokens, tuple(layer >= first_sliding for layer in range(n_layers)))
    given = next((fields[key] for key in _PERIOD_KEYS if fields.get(key) is not None), None)
    if isinstance(given, str) and given:  # such as LLLG: three local layers, one global
        return SlidingWindow(
            tokens, tuple(given[layer % len(given)] == "L" for layer in range(n_layers))
        )
    if type(given) is int and given > 0:
        full_first = period.full_first if period is not None else False
        return SlidingWindow(tokens, _Period(given, full_first=full_first).layers(n_layers))
    return SlidingWindow(tokens, period.layers(n_layers) if period else (False,) * n_layers)


def listed_layer_types(fields: Mapping[str, Any], n_layers: int) -> list[str] | None:
    """The kind of every layer, where config.json lists them all."""
    kinds = fields.get("layer_types")
    if (
        isinstance(kinds, list)
        and len(kinds) == n_layers
        and all(isinstance(kind, str) for kind in kinds)
    ):
        return kinds
    return None


def _of_length(layers: tuple[bool, ...], n_layers: int) -> tuple[bool, ...]:
    return (*layers, *(False,) * n_layers)[:n_layers]
