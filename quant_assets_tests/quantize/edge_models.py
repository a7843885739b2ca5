"""Llama checkpoints of any size, written without holding their weights in memory."""

import json
from pathlib import Path

import gguf
import numpy as np

from quant_assets_tests.models.tiny_models import VOCABULARY

_TILE_VALUES = 1 << 22


def write_llama(
    folder: Path, tokenizer: bytes, *, hidden: int, intermediate: int, layers: int, shards: int = 1
) -> Path:
    """An F16 checkpoint in `shards` safetensors files, with random weights that repeat."""
    folder.mkdir(parents=True)
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": VOCABULARY,
        "hidden_size": hidden,
        "intermediate_size": intermediate,
        "num_hidden_layers": layers,
        "num_attention_heads": hidden // 64,
        "num_key_value_heads": hidden // 128,
        "max_position_embeddings": 256,
        "rms_norm_eps": 1e-5,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "torch_dtype": "float16",
    }
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer.model").write_bytes(tokenizer)
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "LlamaTokenizer", "add_bos_token": True})
    )
    tensors = _shapes(hidden, intermediate, layers)
    names = list(tensors)
    if shards == 1:
        _write_safetensors(folder / "model.safetensors", tensors)
        return folder
    index = {}
    for shard in range(shards):
        file = f"model-{shard + 1:05d}-of-{shards:05d}.safetensors"
        own = {name: tensors[name] for name in names[shard::shards]}
        _write_safetensors(folder / file, own)
        index.update(dict.fromkeys(own, file))
    document = {"metadata": {}, "weight_map": index}
    (folder / "model.safetensors.index.json").write_text(json.dumps(document))
    return folder


def _shapes(hidden: int, intermediate: int, layers: int) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (VOCABULARY, hidden),
        "lm_head.weight": (VOCABULARY, hidden),
        "model.norm.weight": (hidden,),
    }
    for layer in range(layers):
        prefix = f"model.layers.{layer}"
        for name, rows, columns in (
            ("self_attn.q_proj", hidden, hidden),
            ("self_attn.k_proj", hidden // 2, hidden),
            ("self_attn.v_proj", hidden // 2, hidden),
            ("self_attn.o_proj", hidden, hidden),
            ("mlp.gate_proj", intermediate, hidden),
            ("mlp.up_proj", intermediate, hidden),
            ("mlp.down_proj", hidden, intermediate),
        ):
            shapes[f"{prefix}.{name}.weight"] = (rows, columns)
        for name in ("input_layernorm", "post_attention_layernorm"):
            shapes[f"{prefix}.{name}.weight"] = (hidden,)
    return shapes


def _write_safetensors(path: Path, tensors: dict[str, tuple[int, ...]]) -> None:
    header, offset = {}, 0
    for name, shape in tensors.items():
        end = offset + 2 * int(np.prod(shape))
        header[name] = {"dtype": "F16", "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    encoded = json.dumps(header).encode()
    encoded += b" " * (-len(encoded) % 8)
    tile = np.random.default_rng(7).standard_normal(_TILE_VALUES, np.float32) * 0.05
    weights, norm = memoryview(tile.astype("<f2")).cast("B"), np.float16(1).tobytes()
    with path.open("wb") as stream:
        stream.write(len(encoded).to_bytes(8, "little") + encoded)
        for place, shape in enumerate(tensors.values()):
            n_bytes = 2 * int(np.prod(shape))
            if len(shape) == 1:
                stream.write(norm * shape[0])
                continue
            start = 256 * place  # every tensor begins at another place of the tile
            while n_bytes:
                part = weights[start : start + n_bytes]
                stream.write(part)
                n_bytes -= len(part)
                start = 0


def write_gguf(path: Path, architecture: str, *, parts: int = 1) -> Path:
    """An F16 GGUF file of one block, or one of `parts` parts; for `llama` it is complete."""
    writer = gguf.GGUFWriter(path, architecture)
    if parts > 1:
        writer.add_uint16("split.count", parts)
    writer.add_block_count(1)
    writer.add_context_length(256)
    writer.add_embedding_length(256)
    writer.add_feed_forward_length(256)
    writer.add_head_count(4)
    writer.add_head_count_kv(4)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_tokenizer_model("none")
    writer.add_vocab_size(VOCABULARY)
    values = np.random.default_rng(7)
    shapes = {
        "token_embd.weight": (VOCABULARY, 256),
        "output.weight": (VOCABULARY, 256),
        **{
            f"blk.0.{name}.weight": (256, 256)
            for name in (
                "attn_q",
                "attn_k",
                "attn_v",
                "attn_output",
                "ffn_gate",
                "ffn_up",
                "ffn_down",
            )
        },
    }
    for name, shape in shapes.items():
        writer.add_tensor(name, values.standard_normal(shape).astype(np.float16))
    for name in ("output_norm", "blk.0.attn_norm", "blk.0.ffn_norm"):
        writer.add_tensor(f"{name}.weight", np.ones(256, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
