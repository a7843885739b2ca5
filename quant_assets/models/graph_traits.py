"""Traits of a transformer's layers that decide how much memory its computation takes."""

from collections.abc import Callable, Mapping
from enum import StrEnum
from typing import Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field

from quant_assets.models.hf_config import MAX_EXPERTS, MAX_LAYERS, MAX_WIDTH

_SIGMOID_GATE: Final = 2  # llama_expert_gating_func_type
# How src/models/ of llama.cpp builds these, which no tensor or key tells; by architecture in GGUF and
# by model_type.
_RESIDUAL_FIRST: Final = frozenset({"phi3", "phimoe", "jamba"})
_ROPES_SLIDING_LAYERS_ONLY: Final = frozenset({"cohere2", "exaone4", "muse-glimmer"})
_UNROPED_PERIODS: Final = {"smollm3": 4, "llama4": 4, "llama4_text": 4}
_UNNORMED_EXPERTS: Final = frozenset({"olmoe", "qwen2moe", "deepseek", "deepseek2"})
"""Architectures whose experts' weights are not normalized unless the file says so."""


class LayerKind(StrEnum):
    """The feed-forward part of a layer."""

    DENSE = "dense"
    EXPERTS = "experts"


class LatentAttention(BaseModel):
    """Multi-head latent attention: sizes of the compressed rows and of a head's parts.

    A query is compressed to `query_rank` numbers (0: not at all), K and V together to `rank`. A head
    has `plain_dim` numbers without and `rope_dim` with rotation; its value has `value_dim`.
    """

    model_config = ConfigDict(frozen=True)

    query_rank: int = Field(ge=0, le=MAX_WIDTH)
    rank: int = Field(gt=0, le=MAX_WIDTH)
    plain_dim: int = Field(gt=0, le=MAX_WIDTH)
    rope_dim: int = Field(gt=0, le=MAX_WIDTH)
    value_dim: int = Field(gt=0, le=MAX_WIDTH)


class GraphTraits(BaseModel):
    """How the layers of a family differ from Llama's, whose traits are the defaults.

    `query_key_norms` normalizes queries and keys by head or flat. `post_norms` follow attention and
    feed-forward, `post_norms_only` without a norm before them. `parallel_blocks` run attention and
    feed-forward side by side; `residual_first` is the order of the sum after the feed-forward;
    `centred_norms` subtract the mean. The last of every `unroped_period` layers has no rotary
    embedding, and with `ropes_sliding_layers_only` no layer that attends to everything. A `fused` feed-forward has gate and
    up in one matrix, a `plain` one has no gate. Widths are those of one expert and of the shared
    experts together; `dense_layers` have no experts.
    """

    model_config = ConfigDict(frozen=True)

    fused_qkv: bool = False
    query_key_norms: Literal["none", "heads", "flat"] = "none"
    post_norms: bool = False
    post_norms_only: bool = False
    parallel_blocks: bool = False
    residual_first: bool = False
    unroped_period: int = Field(default=0, ge=0, le=MAX_LAYERS)
    ropes_sliding_layers_only: bool = False
    centred_norms: bool = False
    feed_forward: Literal["gated", "fused", "plain"] = "gated"
    latent: LatentAttention | None = None
    dense_layers: frozenset[int] = frozenset()
    expert_width: int = Field(default=0, ge=0, le=MAX_WIDTH)
    shared_width: int = Field(default=0, ge=0, le=MAX_WIDTH)
    gated_shared_experts: bool = False
    merged_experts: bool = False
    sigmoid_gate: bool = False
    biased_selection: bool = False
    normed_expert_weights: bool = True
    scaled_expert_weights: bool = False
    expert_groups: int = Field(default=0, ge=0, le=MAX_EXPERTS)
    expert_groups_used: int = Field(default=0, ge=0, le=MAX_EXPERTS)

    def ropes(self, layer: int, *, slides: bool) -> bool:
        """Whether a layer, which `slides` or not, rotates queries and keys."""
        if self.unroped_period and (layer + 1) % self.unroped_period == 0:
            return False
        return slides or not self.ropes_sliding_layers_only


def gguf_traits(
    architecture: str,
    values: Mapping[str, object],
    tensors: Mapping[str, tuple[int, ...]],
    *,
    n_layers: int,
    width: int,
) -> GraphTraits:
    """The traits of a GGUF file with these key-values and shapes of tensors.

    `width` is that of its dense feed-forward.
    """

    def value(key: str) -> int:
        found = values.get(f"{architecture}.{key}")
        return found if type(found) is int else 0

    roles: dict[str, tuple[int, ...]] = {}
    expert_layers: set[int] = set()
    for name, shape in tensors.items():
        prefix, _, rest = name.partition(".")
        number, _, role = rest.partition(".")
        if prefix == "blk" and number.isdigit():
            roles.setdefault(role, shape)
            if role == "ffn_gate_inp.weight":
                expert_layers.add(int(number))
    down = roles.get("ffn_down_exps.weight", ())
    shared = roles.get("ffn_down_shexp.weight", ())
    normed = values.get(f"{architecture}.expert_weights_norm")
    scale = values.get(f"{architecture}.expert_weights_scale")
    up = roles.get("ffn_up.weight", ())
    pre_norms = "attn_norm.weight" in roles or not roles
    post_norms = "post_attention_norm.weight" in roles and "post_ffw_norm.weight" in roles
    return GraphTraits(
        fused_qkv="attn_qkv.weight" in roles,
        query_key_norms=_norm_kind(roles.get("attn_q_norm.weight"), roles.get("attn_q.weight")),
        post_norms=post_norms,
        post_norms_only=post_norms and not pre_norms,
        parallel_blocks=bool(roles)
        and not post_norms
        and "ffn_norm.weight" not in roles
        and "post_attention_norm.weight" not in roles
        and "ffn_up.weight" in roles
        and "attn_norm.weight" in roles
        and "attn_output.weight" in roles,
        residual_first=architecture in _RESIDUAL_FIRST,
        unroped_period=_UNROPED_PERIODS.get(architecture, 0),
        ropes_sliding_layers_only=architecture in _ROPES_SLIDING_LAYERS_ONLY,
        centred_norms=f"{architecture}.attention.layer_norm_epsilon" in values,
        feed_forward=_feed_forward("ffn_gate.weight" in roles, up, width),
        latent=_gguf_latent(value, roles),
        dense_layers=(
            frozenset(range(n_layers)) - expert_layers
            if value("expert_count") and roles
            else frozenset()
        ),
        expert_width=down[0] if down else 0,
        shared_width=shared[0] if shared else 0,
        gated_shared_experts="ffn_gate_inp_shexp.weight" in roles,
        merged_experts="ffn_gate_up_exps.weight" in roles,
        sigmoid_gate=value("expert_gating_func") == _SIGMOID_GATE,
        biased_selection="exp_probs_b.bias" in roles,
        normed_expert_weights=(
            bool(normed) if normed is not None else architecture not in _UNNORMED_EXPERTS
        ),
        scaled_expert_weights=isinstance(scale, int | float) and scale not in (0, 1),
        expert_groups=value("expert_group_count"),
        expert_groups_used=value("expert_group_used_count"),
    )


def hf_traits(
    fields: Mapping[str, Any],
    tensors: Mapping[str, tuple[int, ...]],
    *,
    n_layers: int,
    width: int,
) -> GraphTraits:
    """The traits of a Hugging Face folder with these fields of config.json and shapes of tensors."""

    def value(*keys: str) -> int:
        return next((fields[key] for key in keys if type(fields.get(key)) is int), 0)

    roles: dict[str, tuple[int, ...]] = {}
    expert_layers: set[int] = set()
    for name, shape in tensors.items():
        _, _, rest = name.partition("layers.")
        number, _, role = rest.partition(".")
        if number.isdigit():
            roles.setdefault(role, shape)
            if ".experts." in role or role.endswith((".gate.weight", ".router.weight")):
                expert_layers.add(int(number))
    n_experts = value("num_local_experts", "num_experts", "n_routed_experts")
    expert_width = value("moe_intermediate_size") or (width if n_experts else 0)
    shared = value("shared_expert_intermediate_size") or (
        value("n_shared_experts") * value("moe_intermediate_size")
    )
    scale = fields.get("routed_scaling_factor")
    normed = fields.get("norm_topk_prob")
    post_norms = "post_feedforward_layernorm.weight" in roles
    query = roles.get("self_attn.q_proj.weight")
    family = str(fields.get("model_type"))
    return GraphTraits(
        fused_qkv="self_attn.qkv_proj.weight" in roles,
        query_key_norms=_norm_kind(
            roles.get("self_attn.q_norm.weight"), query[::-1] if query else None
        ),
        post_norms=post_norms,
        post_norms_only=post_norms and "input_layernorm.weight" not in roles,
        parallel_blocks=bool(query)
        and "post_attention_layernorm.weight" not in roles
        and "input_layernorm.weight" in roles
        and "input_layernorm.bias" in roles,
        residual_first=family in _RESIDUAL_FIRST,
        unroped_period=_UNROPED_PERIODS.get(family, 0),
        ropes_sliding_layers_only=family in _ROPES_SLIDING_LAYERS_ONLY,
        centred_norms="input_layernorm.bias" in roles,
        feed_forward=(
            "fused"
            if "mlp.gate_up_proj.weight" in roles
            else "plain"
            if roles.keys() & {"mlp.fc1.weight", "mlp.c_fc.weight", "mlp.dense_h_to_4h.weight"}
            else "gated"
        ),
        latent=_hf_latent(value),
        dense_layers=(
            frozenset(range(n_layers)) - expert_layers
            if n_experts and expert_layers
            else frozenset()
        ),
        expert_width=expert_width,
        shared_width=shared if n_experts else 0,
        gated_shared_experts="mlp.shared_expert_gate.weight" in roles,
        sigmoid_gate=fields.get("scoring_func") == "sigmoid",
        biased_selection=any(role.endswith("e_score_correction_bias") for role in roles),
        normed_expert_weights=bool(normed) if normed is not None else True,
        scaled_expert_weights=isinstance(scale, int | float) and scale not in (0, 1),
        expert_groups=value("n_group"),
        expert_groups_used=value("topk_group"),
    )


def _norm_kind(
    norm: tuple[int, ...] | None, query: tuple[int, ...] | None
) -> Literal["none", "heads", "flat"]:
    """How queries are normalized, from the shape of the norm and of the query matrix."""
    if not norm:
        return "none"
    return "flat" if query and norm[0] == query[-1] else "heads"


def _feed_forward(
    gated: bool, up: tuple[int, ...], width: int
) -> Literal["gated", "fused", "plain"]:
    if gated or not up:
        return "gated"
    return "fused" if len(up) > 1 and up[1] == 2 * width else "plain"


def _gguf_latent(
    value: Callable[[str], int], roles: Mapping[str, tuple[int, ...]]
) -> LatentAttention | None:
    head, value_dim = value("attention.key_length_mla"), value("attention.value_length_mla")
    rank, rope = value("attention.kv_lora_rank"), value("rope.dimension_count")
    if not (head and value_dim and rank and 0 < rope < head):
        return None
    return LatentAttention(
        query_rank=0 if "attn_q.weight" in roles else value("attention.q_lora_rank"),
        rank=rank,
        plain_dim=head - rope,
        rope_dim=rope,
        value_dim=value_dim,
    )


def _hf_latent(value: Callable[..., int]) -> LatentAttention | None:
    rank, rope = value("kv_lora_rank"), value("qk_rope_head_dim")
    plain, value_dim = value("qk_nope_head_dim"), value("v_head_dim")
    if not (rank and rope and plain and value_dim):
        return None
    return LatentAttention(
        query_rank=value("q_lora_rank"),
        rank=rank,
        plain_dim=plain,
        rope_dim=rope,
        value_dim=value_dim,
    )
