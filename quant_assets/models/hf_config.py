"""`config.json` of a Hugging Face folder, and limits for the counts in it and in GGUF headers.

Memory is allocated in proportion to these counts before any weight is read, so that a hostile file
of a few kilobytes could exhaust it.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from quant_assets.errors import InputError
from quant_assets.formats.json_files import read_json_object
from quant_assets.formats.safetensors_header import require_own_file

CONFIG_NAME: Final = "config.json"
MAX_LAYERS: Final = 10_000
"""Published models have at most 200 layers."""
MAX_HEADS: Final = 65_536
"""Published models have at most 200 heads."""
MAX_EXPERTS: Final = 65_536
"""Published models have at most 512 experts per layer."""
MAX_WIDTH: Final = 2**24
"""Published models have rows of at most 60,000 numbers."""
MAX_VOCABULARY: Final = 2**26
"""Published vocabularies have at most 1 M tokens."""
MAX_CONTEXT_LENGTH: Final = 2**32
"""Published models take at most 10 M tokens; some give 2**31 - 1 for an unlimited window."""

LIMITS: Final[Mapping[str, int]] = {
    **dict.fromkeys(
        ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "num_encoder_layers",
         "num_decoder_layers", "encoder_layers", "decoder_layers", "num_nextn_predict_layers",
         "block_count", "nextn_predict_layers", "num_kv_shared_layers",
         "attention.shared_kv_layers"),
        MAX_LAYERS,
    ),
    **dict.fromkeys(
        ("num_attention_heads", "n_head", "n_heads", "num_heads", "num_key_value_heads",
         "num_global_key_value_heads",
         "multi_query_group_num", "attention.head_count", "attention.head_count_kv"),
        MAX_HEADS,
    ),
    **dict.fromkeys(
        ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts",
         "n_shared_experts", "num_experts_per_tok", "expert_count", "expert_used_count"),
        MAX_EXPERTS,
    ),
    **dict.fromkeys(
        ("hidden_size", "n_embd", "d_model", "intermediate_size", "n_inner", "head_dim",
         "global_head_dim",
         "moe_intermediate_size", "shared_expert_intermediate_size", "kv_lora_rank", "q_lora_rank",
         "qk_rope_head_dim", "qk_nope_head_dim", "v_head_dim", "embedding_length",
         "feed_forward_length", "expert_feed_forward_length", "attention.key_length",
         "attention.value_length", "attention.key_length_swa",
         "attention.value_length_swa", "attention.key_length_mla", "attention.value_length_mla",
         "rope.dimension_count"),
        MAX_WIDTH,
    ),
    "vocab_size": MAX_VOCABULARY,
    **dict.fromkeys(
        ("max_position_embeddings", "n_positions", "sliding_window", "context_length",
         "attention.sliding_window"),
        MAX_CONTEXT_LENGTH,
    ),
}  # fmt: skip
"""The largest accepted value of every count, by its name in config.json or, without the
architecture prefix, in a GGUF header."""


def read_config(folder: Path) -> dict[str, Any]:
    """The content of the folder's config.json, with its counts within the limits.

    Raises `InputError` when the file is missing, damaged, or leads out of the folder.
    """
    path = folder / CONFIG_NAME
    if not path.exists():
        raise InputError(
            f"The folder {folder} has no config.json.",
            "A Hugging Face model folder holds config.json, a tokenizer and safetensors files.",
            "Give the folder that holds these files, or a GGUF file.",
        )
    config = read_json_object(
        require_own_file(path, folder),
        next_step="Give a folder with config.json and safetensors files, or a GGUF file.",
    )
    for part in _parts(config):
        for name, limit in LIMITS.items():
            check_limit(part.get(name), limit, name, path)
    return config


def text_config(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The language model's part of a multimodal model's config; empty where there is none."""
    text = config.get("text_config")
    return text if isinstance(text, dict) else {}


def _parts(config: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """The config and its nested configs: those of the parts of a multimodal model."""
    waiting = [config]
    while waiting:
        part = waiting.pop()
        yield part
        waiting += [value for value in part.values() if isinstance(value, dict)]


def check_limit(value: object, limit: int, name: str, path: Path) -> None:
    """Raise `InputError` for a number, or an item of a list, beyond `limit`."""
    values = value if isinstance(value, list | tuple) else [value]
    for number in values:
        # `not <=` also catches NaN, unlike `>`.
        if isinstance(number, int | float) and not number <= limit:
            raise InputError(
                f"The model at {path} declares an impossible shape.",
                f"Its {name} is {short(number)}; no model has more than {limit:,}.",
                "Check that the file is the one the model was published with.",
            )


def short(value: object) -> str:
    """A value from a file, shortened for an error message."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:40]}... ({len(text)} characters)"


def count(value: object, name: str, path: Path) -> int:
    """`value` as a count (the largest of a list); raises `InputError` for anything else."""
    values = value if isinstance(value, list | tuple) else (value,)
    if not values or not all(type(number) is int and number >= 0 for number in values):
        raise InputError(
            f"The model at {path} declares an impossible shape.",
            f"Its {name} is {short(value)}, which is not a count.",
            "Check that the file is the one the model was published with.",
        )
    return int(max(values))
