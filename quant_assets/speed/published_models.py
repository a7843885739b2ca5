"""Published model shapes, found by the names that tables of measured speeds give their models.

`data/published_models.yaml` holds them. The arithmetic counts the matrices of each kind of layer, so that
a mixture's shared experts, dense first layers, latent attention and recurrent layers count as what
they are; the published counts beside them check it.
"""

import re
from collections.abc import Mapping, Sequence
from functools import cache, lru_cache
from typing import Final

import yaml
from pydantic import BaseModel, ConfigDict, Field, PositiveInt, TypeAdapter, ValidationError

from quant_assets.errors import InputError
from quant_assets.models.inspection import ModelShape
from quant_assets.settings import get_settings

MAX_SIZE_MISMATCH: Final = 0.2
"""A model of a known name whose stated size differs by more is another model."""

_MOST_NAMES: Final = 4096  # remembered; tables repeat their models' names
_TOKEN: Final = re.compile(
    r"\d+x\d+(?:\.\d+)?b(?![a-z0-9])"  # 8x7b
    r"|[ae]\d+(?:\.\d+)?[bm](?![a-z0-9])"  # a3b, e4b
    r"|\d+(?:\.\d+)?[bmtk](?![a-z0-9])"  # 27b, 135m, 128k
    r"|\d+(?:\.\d+)*"  # 3.5
    r"|[a-z]+"
)
_SIZE: Final = re.compile(r"(\d+(?:\.\d+)?)([bmt])")
_UNITS: Final = {"m": 1e6, "b": 1e9, "t": 1e12}


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Experts(_Part):
    """The routed experts of `layers` layers (default: all), of which each token uses `used`.

    `shared_intermediate_size` is that of the expert, or dense feed-forward part, beside them that
    every token uses. `width`: the rows of the experts where they are projected to another size than
    the hidden one first. `stored_type`: the type in which the weights were published, which GGUF
    files of every level keep.
    """

    count: PositiveInt
    used: PositiveInt
    intermediate_size: PositiveInt
    shared_intermediate_size: int = Field(default=0, ge=0)
    layers: PositiveInt | None = None
    width: PositiveInt | None = None
    stored_type: str | None = None


class LatentAttention(_Part):
    """Multi-head latent attention (DeepSeek-V2): keys and values from one row of `rank` numbers.

    `key_dim`, `value_dim` and `rotary_dim` are per head (`qk_nope_head_dim`, `v_head_dim`,
    `qk_rope_head_dim`).
    """

    rank: PositiveInt
    key_dim: PositiveInt
    rotary_dim: PositiveInt
    value_dim: PositiveInt
    query_rank: PositiveInt | None = None


class DeltaLayers(_Part):
    """Gated DeltaNet layers (Yang et al., 2024): all layers without attention."""

    key_heads: PositiveInt
    value_heads: PositiveInt
    head_dim: PositiveInt


class MambaLayers(_Part):
    """Mamba-2 layers (Dao and Gu, 2024)."""

    layers: PositiveInt
    inner_size: PositiveInt
    groups: PositiveInt
    state_size: PositiveInt
    heads: PositiveInt


class PublishedModel(_Part):
    """The shape of one published model; sizes as its config.json names them.

    `gated`: the feed-forward part has a gate beside its two matrices. `gated_attention`: so do the
    queries. `n_sliding_layers` layers see the last `sliding_window` tokens; the others may have other
    heads (`global_head_dim`, `global_n_kv_heads`), and values without a matrix of their own
    (`global_values` false). `per_layer_input_size`: a second embedding per layer, only looked up.
    `other_parameters` are matrices that the rest does not describe. `parameters_b` and `active_b`
    are the published counts in 10^9.
    """

    name: str
    aliases: tuple[str, ...] = ()
    n_layers: PositiveInt
    hidden_size: PositiveInt
    intermediate_size: int = Field(default=0, ge=0)
    n_heads: PositiveInt
    n_kv_heads: PositiveInt
    head_dim: PositiveInt
    vocab_size: PositiveInt
    tied_embeddings: bool = False
    gated: bool = True
    gated_attention: bool = False
    n_attention_layers: PositiveInt | None = None
    n_feed_forward_layers: PositiveInt | None = None
    sliding_window: PositiveInt | None = None
    n_sliding_layers: int = Field(default=0, ge=0)
    global_head_dim: PositiveInt | None = None
    global_n_kv_heads: PositiveInt | None = None
    global_values: bool = True
    latent: LatentAttention | None = None
    experts: Experts | None = None
    delta: DeltaLayers | None = None
    mamba: MambaLayers | None = None
    short_convolutions: bool = False
    per_layer_input_size: int = Field(default=0, ge=0)
    other_parameters: int = Field(default=0, ge=0)
    parameters_b: float = Field(gt=0)
    active_b: float | None = Field(default=None, gt=0)

    @property
    def attention_layers(self) -> int:
        """Layers with attention."""
        return self.n_attention_layers or self.n_layers

    @property
    def expert_layers(self) -> int:
        """Layers with routed experts."""
        if self.experts is None:
            return 0
        return self.experts.layers or self.n_layers

    @property
    def expert_parameters(self) -> int:
        """Parameters of all routed experts."""
        if self.experts is None:
            return 0
        width = self.experts.width or self.hidden_size
        one = self._feed_forward(width, self.experts.intermediate_size)
        return self.expert_layers * self.experts.count * one

    @property
    def embedding_parameters(self) -> int:
        """Parameters of one table of the vocabulary: the input embedding, or the output head."""
        return self.vocab_size * self.hidden_size

    @property
    def lookup_parameters(self) -> int:
        """Parameters of which a pass reads the rows of its tokens alone."""
        per_layer = self.vocab_size * self.n_layers * self.per_layer_input_size
        return per_layer + (0 if self.tied_embeddings else self.embedding_parameters)

    @property
    def n_linear_parameters(self) -> int:
        """Parameters of the matrices inside the blocks, all experts included."""
        return (
            self._attention()
            + self._recurrent()
            + self._dense_feed_forward()
            + self.expert_parameters
            + 3 * self.hidden_size * self.n_layers * self.per_layer_input_size
            + self.other_parameters
        )

    @property
    def n_parameters(self) -> int:
        """All parameters but norms and biases."""
        return self.n_linear_parameters + self.embedding_parameters + self.lookup_parameters

    @property
    def active_parameters(self) -> int:
        """Parameters that one token multiplies with, the output head among them."""
        share = self.experts.used / self.experts.count if self.experts else 1.0
        always = self.n_linear_parameters - self.expert_parameters + self.embedding_parameters
        return always + round(self.expert_parameters * share)

    @property
    def state_bytes(self) -> int:
        """Bytes of the recurrent layers' F32 states of one sequence, which every step rewrites."""
        numbers = 0
        if (delta := self.delta) is not None:
            layers = self.n_layers - self.attention_layers
            numbers += layers * delta.value_heads * delta.head_dim**2
        if (mamba := self.mamba) is not None:
            numbers += mamba.layers * mamba.inner_size * mamba.state_size
        return 4 * numbers

    @property
    def shape(self) -> ModelShape:
        """The shape as the rest of the project reads it, its sliding layers first."""
        head_dims, kv_heads = (self.head_dim, self.head_dim), self.n_kv_heads
        if self.latent is not None:
            # One compressed row per token, of which V is a view.
            head_dims, kv_heads = (self.latent.rank + self.latent.rotary_dim, 0), 1
        global_heads, sliding_dims = kv_heads, None
        if self.global_head_dim is not None and self.global_n_kv_heads is not None:
            global_heads, sliding_dims = self.global_n_kv_heads, head_dims
            head_dims = (self.global_head_dim, self.global_head_dim)
        n_global = self.attention_layers - self.n_sliding_layers
        without = self.n_layers - self.attention_layers
        return ModelShape(
            architecture=self.name,
            n_layers=self.n_layers,
            hidden_size=self.hidden_size,
            intermediate_size=self.intermediate_size,
            n_heads=self.n_heads,
            kv_heads_by_layer=(
                (kv_heads,) * self.n_sliding_layers + (global_heads,) * n_global + (0,) * without
            ),
            head_dim_k=head_dims[0],
            head_dim_v=head_dims[1],
            sliding_head_dims=sliding_dims,
            vocab_size=self.vocab_size,
            sliding_window=self.sliding_window,
            n_sliding_layers=self.n_sliding_layers,
            n_experts=self.experts.count if self.experts else 0,
            n_experts_used=self.experts.used if self.experts else 0,
            n_parameters=self.n_parameters,
            n_linear_parameters=self.n_linear_parameters,
        )

    def _feed_forward(self, hidden: int, inner: int) -> int:
        return (3 if self.gated else 2) * hidden * inner

    def _dense_feed_forward(self) -> int:
        layers = self.n_feed_forward_layers or self.n_layers
        total = (layers - self.expert_layers) * self._feed_forward(
            self.hidden_size, self.intermediate_size
        )
        if self.experts is not None:
            router = self.hidden_size * self.experts.count
            shared = self._feed_forward(self.hidden_size, self.experts.shared_intermediate_size)
            projections = 2 * self.hidden_size * (self.experts.width or 0)
            total += self.expert_layers * (router + shared + projections)
        return total

    def _attention(self) -> int:
        hidden, heads = self.hidden_size, self.n_heads
        if (latent := self.latent) is not None:
            query_rows = heads * (latent.key_dim + latent.rotary_dim)
            if latent.query_rank is None:
                query = hidden * query_rows
            else:
                query = latent.query_rank * (hidden + query_rows)
            compressed = hidden * (latent.rank + latent.rotary_dim)
            expanded = latent.rank * heads * (latent.key_dim + latent.value_dim)
            output = heads * latent.value_dim * hidden
            return self.attention_layers * (query + compressed + expanded + output)
        n_global = self.attention_layers - self.n_sliding_layers
        query_and_output = 3 if self.gated_attention else 2
        common = hidden * self.head_dim * (query_and_output * heads + 2 * self.n_kv_heads)
        head_dim = self.global_head_dim or self.head_dim
        kv_heads = self.global_n_kv_heads or self.n_kv_heads
        key_and_value = 2 if self.global_values else 1
        everywhere = hidden * head_dim * (query_and_output * heads + key_and_value * kv_heads)
        return self.n_sliding_layers * common + n_global * everywhere

    def _recurrent(self) -> int:
        hidden = self.hidden_size
        total = 0
        if (delta := self.delta) is not None:
            keys, values = delta.key_heads * delta.head_dim, delta.value_heads * delta.head_dim
            one = hidden * (2 * keys + 3 * values + 2 * delta.value_heads)
            total += (self.n_layers - self.attention_layers) * one
        if (mamba := self.mamba) is not None:
            one = hidden * (
                3 * mamba.inner_size + 2 * mamba.groups * mamba.state_size + mamba.heads
            )
            total += mamba.layers * one
        if self.short_convolutions:
            total += (self.n_layers - self.attention_layers) * 4 * hidden**2
        return total


@cache
def published_models() -> Mapping[str, PublishedModel]:
    """The published shapes by name; raises `InputError` for an invalid file."""
    file = get_settings().data / "published_models.yaml"
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        content = yaml.load(file.read_bytes(), loader)  # noqa: S506
        models = TypeAdapter(list[PublishedModel]).validate_python(content)
    except (OSError, yaml.YAMLError, ValidationError) as error:
        raise InputError(
            f"The file {file} cannot be used.", f"{error}.", "Restore the original file."
        ) from error
    return {model.name: model for model in models}


@lru_cache(maxsize=_MOST_NAMES)
def find_published_model(name: str, parameters_b: float | None = None) -> PublishedModel | None:
    """The published model that `name` means; None when there is none, or more than one.

    The words of a known name must be in `name`, in their order (makers, releases and suffixes may
    stand between them); the longest known name wins. Sizes that contradict it, in `name` or as `parameters_b`
    (10^9), rule it out: a distilled model of another size is another model.
    """
    words = _words(name)
    found: dict[str, int] = {}
    for known, model in _known_names():
        if not _in_order(known, words) or _contradicts(words, known, parameters_b, model):
            continue
        found[model.name] = max(found.get(model.name, 0), len(known))
    if not found:
        return None
    longest = max(found.values())
    best = [entry for entry, length in found.items() if length == longest]
    return published_models()[best[0]] if len(best) == 1 else None


def size_in_name(name: str) -> float | None:
    """Parameters that a model's name states: 8e9 for `granite-3.1-8b-instruct`; None without one."""
    sizes = [match for word in _words(name) if (match := _SIZE.fullmatch(word))]
    if not sizes:
        return None
    return max(float(match[1]) * _UNITS[match[2]] for match in sizes)


@cache
def _known_names() -> Sequence[tuple[tuple[str, ...], PublishedModel]]:
    return [
        (_words(name), model)
        for model in published_models().values()
        for name in (model.name, *model.aliases)
    ]


@lru_cache(maxsize=_MOST_NAMES)
def _words(name: str) -> tuple[str, ...]:
    return tuple(_TOKEN.findall(name.casefold()))


def _in_order(known: tuple[str, ...], words: tuple[str, ...]) -> bool:
    remaining = iter(words)
    return all(word in remaining for word in known)


def _contradicts(
    words: tuple[str, ...],
    known: tuple[str, ...],
    parameters_b: float | None,
    model: PublishedModel,
) -> bool:
    stated = [
        float(match[1]) * _UNITS[match[2]]
        for word in words
        if word not in known and (match := _SIZE.fullmatch(word))
    ]
    if parameters_b is not None:
        stated.append(parameters_b * 1e9)
    # Some names count the embeddings, or a vision tower; others leave them out.
    return any(
        abs(size / model.n_parameters - 1) > MAX_SIZE_MISMATCH
        and abs(size - model.n_parameters) > 0.5e9
        for size in stated
    )
