"""Small model files, written by the formats' own libraries: complete headers, zero weights."""

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from safetensors.numpy import save_file

CONFIG: dict[str, Any] = {
    "model_type": "llama",
    "num_hidden_layers": 2,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 100,
    "max_position_embeddings": 512,
}


def hf_tensors() -> dict[str, np.ndarray]:
    half = np.float16
    tensors = {
        "model.embed_tokens.weight": np.zeros((100, 64), half),
        "model.norm.weight": np.zeros(64, np.float32),
    }
    for layer in range(2):
        prefix = f"model.layers.{layer}."
        tensors[prefix + "self_attn.q_proj.weight"] = np.zeros((64, 64), half)
        tensors[prefix + "mlp.up_proj.weight"] = np.zeros((96, 64), half)
        tensors[prefix + "input_layernorm.weight"] = np.zeros(64, half)
    return tensors


def write_hf(folder: Path, config: dict[str, Any]) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    save_file(hf_tensors(), folder / "model.safetensors")
    return folder


def write_gguf(path: Path, **extra: Any) -> Path:
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(2)
    writer.add_embedding_length(64)
    writer.add_feed_forward_length(96)
    writer.add_head_count(4)
    if "kv_heads" in extra:
        writer.add_array("llama.attention.head_count_kv", extra["kv_heads"])
    else:
        writer.add_head_count_kv(2)
    if "window" in extra:
        writer.add_uint32("llama.attention.sliding_window", extra["window"])
        if isinstance(extra["pattern"], list):
            writer.add_array("llama.attention.sliding_window_pattern", extra["pattern"])
        elif extra["pattern"]:
            writer.add_uint32("llama.attention.sliding_window_pattern", extra["pattern"])
    writer.add_token_list([f"token {number}" for number in range(extra.get("tokens", 100))])
    writer.add_tensor("token_embd.weight", np.ones((100, 64), np.float16))
    writer.add_tensor("blk.0.attn_q.weight", np.ones((64, 64), np.float16))
    packed = np.zeros((96, 64 // 32 * 18), np.uint8)
    writer.add_tensor("blk.0.ffn_up.weight", packed, raw_dtype=gguf.GGMLQuantizationType.Q4_0)
    writer.add_tensor("blk.0.attn_norm.weight", np.ones(64, np.float32))
    for name, values in extra.get("more", {}).items():
        q4_0 = gguf.GGMLQuantizationType.Q4_0 if values.dtype == np.uint8 else None
        writer.add_tensor(name, values, raw_dtype=q4_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
