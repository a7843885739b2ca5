"""Tiny random Hugging Face checkpoints of several architectures, with their own tokenizer."""

import io
import json
import pydoc_data.topics
from pathlib import Path
from typing import Any

VOCABULARY = 512
ARCHITECTURES = ("llama", "llama_tied", "qwen3", "gemma3", "mixtral", "mixtral_4")

_COMMON: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 256,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "max_position_embeddings": 256,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "tie_word_embeddings": False,
}


def calibration_text() -> str:
    """About 700 KB of English that ships with every Python."""
    return "\n".join(pydoc_data.topics.topics[name] for name in sorted(pydoc_data.topics.topics))


def tokenizer_model() -> bytes:
    """A SentencePiece model with byte fallback, trained here; the converter accepts any of them."""
    import sentencepiece

    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(calibration_text()[:60_000].splitlines()),
        model_writer=model,
        vocab_size=VOCABULARY,
        model_type="bpe",
        byte_fallback=True,
        pad_id=0,
        bos_id=1,
        eos_id=2,
        unk_id=3,
        minloglevel=2,
    )
    return model.getvalue()


def make_model(
    folder: Path,
    architecture: str,
    tokenizer: bytes,
    *,
    dtype: str = "bfloat16",
    max_shard_size: str = "1GB",
    **changes: Any,
) -> Path:
    """Save a tiny random model of `architecture` with `tokenizer` in `folder`."""
    import torch
    from transformers import AutoModelForCausalLM

    torch.manual_seed(7)
    model = AutoModelForCausalLM.from_config(_config(architecture, changes))
    # Random weights of a fresh model are tiny and alike; spread them as training does.
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3).add_(torch.randn_like(parameter) * 0.02)
    model.to(getattr(torch, dtype)).save_pretrained(folder, max_shard_size=max_shard_size)
    (folder / "tokenizer.model").write_bytes(tokenizer)
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "LlamaTokenizer", "add_bos_token": True})
    )
    return folder


def _config(architecture: str, changes: dict[str, Any]) -> Any:
    from transformers import (
        Gemma3TextConfig,
        LlamaConfig,
        MixtralConfig,
        Qwen3Config,
    )

    values = {**_COMMON, **changes}
    if architecture == "llama":
        # llama.cpp's policy treats the first eighth of the blocks in its own way.
        return LlamaConfig(**{**_COMMON, "num_hidden_layers": 8, **changes})
    if architecture == "llama_tied":
        # 288 is not a multiple of 256: llama.cpp falls back to other types.
        return LlamaConfig(
            **{**values, "hidden_size": 288, "head_dim": 72, "tie_word_embeddings": True}
        )
    if architecture == "qwen3":
        return Qwen3Config(**values)
    if architecture == "gemma3":
        return Gemma3TextConfig(
            **{**values, "tie_word_embeddings": True, "query_pre_attn_scalar": 64}
        )
    # llama.cpp's policy has rules of its own for exactly 8 experts.
    n_experts = 4 if architecture == "mixtral_4" else 8
    return MixtralConfig(
        **values,
        num_local_experts=n_experts,
        num_experts_per_tok=2,
    )
