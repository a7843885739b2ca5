"""Tiny models of many architectures as GGUF files, with weights that are holes in a sparse file."""

from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import gguf
import numpy as np

VOCABULARY = 1000


class Tiny(NamedTuple):
    """One tiny model: Llama's tensors and keys unless a family adds or replaces some.

    `window` sets the key of a sliding window, `pattern` that of its pattern. `query_rank` and `rank`
    are those of latent attention, whose heads have `head_dim` numbers without and 32 with rotation.
    """

    name: str
    architecture: str
    layers: int = 3
    hidden: int = 256
    width: int = 512
    heads: int = 4
    kv_heads: int | list[int] = 2
    head_dim: int = 64
    vocabulary: int = VOCABULARY
    tied: bool = False
    window: int | None = None
    pattern: int | list[bool] | None = None
    experts: int = 0
    experts_used: int = 0
    expert_width: int = 0
    shared_width: int = 0
    dense_layers: int = 0
    query_rank: int = 0
    rank: int = 0
    keys: Mapping[str, Any] = {}


_ROPE_DIM = 32

ARCHITECTURES: tuple[Tiny, ...] = (
    Tiny("llama", "llama"),
    Tiny("llama, one layer", "llama", layers=1),
    Tiny("llama, deep and tied", "llama", layers=12, tied=True),
    Tiny("llama, without grouped queries", "llama", kv_heads=4),
    Tiny("llama, one KV head", "llama", heads=8, kv_heads=1, head_dim=32),
    Tiny("llama, wide", "llama", width=2048, hidden=320, heads=5, kv_heads=5),
    Tiny("llama, large vocabulary", "llama", vocabulary=32000),
    Tiny("llama, heads wider than the model", "llama", hidden=192, heads=4, head_dim=128),
    Tiny("qwen2", "qwen2"),
    Tiny("qwen2, tied", "qwen2", layers=5, tied=True, hidden=384, heads=6, kv_heads=1),
    Tiny("qwen2, narrow heads", "qwen2", head_dim=32, heads=8, kv_heads=4),
    Tiny("qwen2, vocabulary of 20,000", "qwen2", vocabulary=20000, hidden=128, heads=2),
    Tiny("qwen3", "qwen3"),
    Tiny("qwen3, wide heads", "qwen3", head_dim=128, heads=4, layers=4),
    Tiny("qwen3, tied", "qwen3", tied=True, kv_heads=1, width=768),
    Tiny("qwen3, without grouped queries", "qwen3", kv_heads=4, vocabulary=9000),
    Tiny("gemma", "gemma", tied=True, kv_heads=1, head_dim=128),
    Tiny("gemma2", "gemma2", layers=4, tied=True, window=512),
    Tiny("gemma2, default window", "gemma2", layers=6, tied=True),
    Tiny("gemma2, wide heads", "gemma2", layers=3, tied=True, window=1024, head_dim=128),
    Tiny("gemma2, no grouped queries", "gemma2", layers=2, tied=True, window=256, kv_heads=4),
    Tiny("gemma3", "gemma3", layers=6, tied=True, window=512),
    Tiny("gemma3, two periods", "gemma3", layers=14, tied=True, window=1024, kv_heads=1),
    Tiny("gemma3, its own pattern", "gemma3", layers=6, tied=True, window=512, pattern=3),
    Tiny("gemma3, a listed pattern", "gemma3", layers=4, tied=True, window=512,
         pattern=[True, False, False, True]),
    Tiny("gemma3, no window", "gemma3", layers=4, tied=True),
    Tiny("gemma3, large vocabulary", "gemma3", layers=7, tied=True, window=512, vocabulary=60000),
    Tiny("phi3", "phi3"),
    Tiny("phi3, grouped queries off", "phi3", kv_heads=4, layers=2),
    Tiny("phi3, window without effect", "phi3", window=512, layers=4, width=1024),
    Tiny("phi3, deep", "phi3", layers=12, hidden=512, heads=8, head_dim=64, width=256),
    Tiny("mixtral", "llama", experts=8, experts_used=2, expert_width=512),
    Tiny("mixtral, one expert used", "llama", experts=4, experts_used=1, width=256, expert_width=256),
    Tiny("mixtral, four used", "llama", experts=16, experts_used=4, width=128, expert_width=128,
         layers=5),
    Tiny("qwen3moe", "qwen3moe", experts=16, experts_used=4, expert_width=128),
    Tiny("qwen3moe, eight of 64", "qwen3moe", experts=64, experts_used=8, expert_width=96, layers=5),
    Tiny("qwen3moe, wide heads", "qwen3moe", experts=8, experts_used=2, expert_width=256,
         head_dim=128),
    Tiny("qwen2moe", "qwen2moe", experts=8, experts_used=2, expert_width=128, shared_width=256),
    Tiny("olmoe", "olmoe", experts=8, experts_used=2, width=256, expert_width=256, kv_heads=4),
    Tiny("deepseek2", "deepseek2", query_rank=96, rank=128, experts=8, experts_used=2,
         expert_width=128, shared_width=128, dense_layers=1),
    Tiny("deepseek2, many heads", "deepseek2", query_rank=64, rank=64, heads=16, experts=16,
         experts_used=4, expert_width=64, shared_width=128, dense_layers=2, layers=6),
    Tiny("deepseek2, grouped experts", "deepseek2", query_rank=96, rank=128, experts=16,
         experts_used=4, expert_width=128, shared_width=128, dense_layers=1,
         keys={"expert_group_count": 4, "expert_group_used_count": 2, "expert_gating_func": 2,
               "expert_weights_norm": True, "expert_weights_scale": 2.5}),
    Tiny("olmo2", "olmo2", kv_heads=4),
    Tiny("olmo3", "olmo2", kv_heads=4, layers=8, window=512),
    Tiny("cohere2", "cohere2", layers=4, tied=True, window=512, keys={"logit_scale": 0.25}),
    Tiny("cohere2, deep", "cohere2", layers=9, tied=True, window=128, keys={"logit_scale": 0.25}),
    Tiny("starcoder2", "starcoder2"),
    Tiny("smollm3, deep", "smollm3", layers=9, tied=True),
    Tiny("deepseek2, all dense", "deepseek2", layers=2, query_rank=64, rank=64, experts=4,
         experts_used=2, expert_width=64, shared_width=64, dense_layers=2),
    Tiny("granite", "granite", keys={"attention.scale": 0.1, "embedding_scale": 12.0,
         "residual_scale": 0.2, "logit_scale": 8.0}),
    Tiny("smollm3", "smollm3", tied=True),
    Tiny("exaone4", "exaone4", layers=4),
    Tiny("glm4", "glm4"),
    Tiny("gpt-oss", "gpt-oss", layers=4, window=128, experts=8, experts_used=2, expert_width=256),
)  # fmt: skip


def write_tiny(model: Tiny, path: Path) -> Path:
    """Write `model` as a GGUF file of F16 matrices and F32 vectors."""
    writer = gguf.GGUFWriter(path, model.architecture)
    writer.add_block_count(model.layers)
    writer.add_context_length(131072)
    writer.add_embedding_length(model.hidden)
    writer.add_feed_forward_length(model.width)
    writer.add_head_count(model.heads)
    writer.add_vocab_size(model.vocabulary)
    writer.add_tokenizer_model("none")
    prefix = model.architecture
    if model.architecture in _CENTRED:
        writer.add_layer_norm_eps(1e-5)
    else:
        writer.add_layer_norm_rms_eps(1e-5)
    if model.rank:
        writer.add_head_count_kv(1)
        writer.add_key_length(model.rank + _ROPE_DIM)
        writer.add_value_length(model.rank)
        writer.add_key_length_mla(model.head_dim + _ROPE_DIM)
        writer.add_value_length_mla(model.head_dim)
        writer.add_kv_lora_rank(model.rank)
        writer.add_q_lora_rank(model.query_rank)
        writer.add_rope_dimension_count(_ROPE_DIM)
        writer.add_leading_dense_block_count(model.dense_layers)
        writer.add_expert_shared_count(model.shared_width // model.expert_width)
    else:
        writer.add_head_count_kv(model.kv_heads)
        writer.add_key_length(model.head_dim)
        writer.add_value_length(model.head_dim)
        writer.add_rope_dimension_count(model.head_dim)
    if model.window is not None:
        writer.add_sliding_window(model.window)
    if isinstance(model.pattern, list):
        writer.add_array(f"{prefix}.attention.sliding_window_pattern", model.pattern)
    elif model.pattern is not None:
        writer.add_uint32(f"{prefix}.attention.sliding_window_pattern", model.pattern)
    if model.experts:
        writer.add_expert_count(model.experts)
        writer.add_expert_used_count(model.experts_used)
        writer.add_expert_feed_forward_length(model.expert_width)
        if model.shared_width:
            writer.add_expert_shared_feed_forward_length(model.shared_width)
    for key, value in model.keys.items():
        if isinstance(value, bool):
            writer.add_bool(f"{prefix}.{key}", value)
        elif isinstance(value, int):
            writer.add_uint32(f"{prefix}.{key}", value)
        else:
            writer.add_float32(f"{prefix}.{key}", value)
    shapes = _tensors(model)
    sizes = []
    for name, shape in shapes.items():
        item, dtype = (2, np.float16) if len(shape) > 1 else (4, np.float32)
        if name.endswith("ffn_gate_inp.weight"):
            item, dtype = 4, np.float32
        sizes.append(item * prod(shape))
        writer.add_tensor_info(name, shape[::-1], np.dtype(dtype), sizes[-1])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    with path.open("r+b") as stream:
        end = stream.seek(0, 2)
        stream.truncate(_padded(end) + sum(map(_padded, sizes)))
    return path


_CENTRED = {"starcoder2", "cohere2"}


def _padded(size: int) -> int:
    return -(-size // 32) * 32


def _tensors(model: Tiny) -> dict[str, tuple[int, ...]]:
    """Every tensor's shape, row length first."""
    hidden = model.hidden
    tensors: dict[str, tuple[int, ...]] = {
        "token_embd.weight": (hidden, model.vocabulary),
        "output_norm.weight": (hidden,),
    }
    if not model.tied:
        tensors["output.weight"] = (hidden, model.vocabulary)
    if model.architecture == "starcoder2":
        tensors["output_norm.bias"] = (hidden,)
    for layer in range(model.layers):
        block = {**_attention(model, layer), **_feed_forward(model, layer)}
        tensors |= {f"blk.{layer}.{role}": shape for role, shape in block.items()}
    return tensors


def _attention(model: Tiny, layer: int) -> dict[str, tuple[int, ...]]:
    hidden, family, dim = model.hidden, model.architecture, model.head_dim
    kv_heads = model.kv_heads if isinstance(model.kv_heads, int) else model.kv_heads[layer]
    query, key = model.heads * dim, kv_heads * dim
    if model.rank:
        return {
            "attn_norm.weight": (hidden,),
            "attn_q_a.weight": (hidden, model.query_rank),
            "attn_q_a_norm.weight": (model.query_rank,),
            "attn_q_b.weight": (model.query_rank, model.heads * (dim + _ROPE_DIM)),
            "attn_kv_a_mqa.weight": (hidden, model.rank + _ROPE_DIM),
            "attn_kv_a_norm.weight": (model.rank,),
            "attn_k_b.weight": (dim, model.rank, model.heads),
            "attn_v_b.weight": (model.rank, dim, model.heads),
            "attn_output.weight": (model.heads * dim, hidden),
        }
    block: dict[str, tuple[int, ...]] = {"attn_norm.weight": (hidden,)}
    if family == "phi3":
        block["attn_qkv.weight"] = (hidden, query + 2 * key)
    else:
        block |= {
            "attn_q.weight": (hidden, query),
            "attn_k.weight": (hidden, key),
            "attn_v.weight": (hidden, key),
        }
    block["attn_output.weight"] = (query, hidden)
    if family in {"qwen2", "qwen2moe", "starcoder2", "gpt-oss"}:
        block |= {"attn_q.bias": (query,), "attn_k.bias": (key,), "attn_v.bias": (key,)}
    if family in {"starcoder2", "gpt-oss"}:
        block["attn_output.bias"] = (hidden,)
    if family == "starcoder2":
        block["attn_norm.bias"] = (hidden,)
    if family in {"qwen3", "qwen3moe", "gemma3", "exaone4"}:
        block |= {"attn_q_norm.weight": (dim,), "attn_k_norm.weight": (dim,)}
    if family in {"olmo2", "olmoe"}:
        block |= {"attn_q_norm.weight": (query,), "attn_k_norm.weight": (key,)}
    if family in {"gemma2", "gemma3", "olmo2", "exaone4", "glm4"}:
        block |= {"post_attention_norm.weight": (hidden,), "post_ffw_norm.weight": (hidden,)}
    if family in {"olmo2", "exaone4"}:
        del block["attn_norm.weight"]
    if family == "gpt-oss":
        block |= {"post_attention_norm.weight": (hidden,), "attn_sinks.weight": (model.heads,)}
    return block


def _feed_forward(model: Tiny, layer: int) -> dict[str, tuple[int, ...]]:
    hidden, width, family = model.hidden, model.width, model.architecture
    block: dict[str, tuple[int, ...]] = {"ffn_norm.weight": (hidden,)}
    if family in {"olmo2", "exaone4", "cohere2", "gpt-oss"}:
        block = {}
    if model.experts and layer >= model.dense_layers:
        inner, experts = model.expert_width, model.experts
        block |= {
            "ffn_gate_inp.weight": (hidden, experts),
            "ffn_gate_exps.weight": (hidden, inner, experts),
            "ffn_up_exps.weight": (hidden, inner, experts),
            "ffn_down_exps.weight": (inner, hidden, experts),
        }
        if family == "gpt-oss":
            block |= {
                "ffn_gate_inp.bias": (experts,),
                "ffn_gate_exps.bias": (inner, experts),
                "ffn_up_exps.bias": (inner, experts),
                "ffn_down_exps.bias": (hidden, experts),
            }
        if model.shared_width:
            block |= {
                "ffn_gate_shexp.weight": (hidden, model.shared_width),
                "ffn_up_shexp.weight": (hidden, model.shared_width),
                "ffn_down_shexp.weight": (model.shared_width, hidden),
            }
        if family == "qwen2moe":
            block["ffn_gate_inp_shexp.weight"] = (hidden,)
        if "expert_group_count" in model.keys:
            block["exp_probs_b.bias"] = (experts,)
        return block
    down = {"ffn_down.weight": (width, hidden)}
    if family in {"phi3", "glm4"}:
        return {**block, **down, "ffn_up.weight": (hidden, 2 * width)}
    if family == "starcoder2":
        return {
            **block,
            **down,
            "ffn_norm.bias": (hidden,),
            "ffn_up.weight": (hidden, width),
            "ffn_up.bias": (width,),
            "ffn_down.bias": (hidden,),
        }
    return {
        **block,
        **down,
        "ffn_gate.weight": (hidden, width),
        "ffn_up.weight": (hidden, width),
    }
