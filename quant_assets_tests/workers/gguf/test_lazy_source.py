"""Tensors read straight from the shards, and tensors that the converter computes."""

from pathlib import Path

import pytest

from quant_assets.workers.gguf.hf_source import HuggingFaceSource


@pytest.mark.parametrize(
    ("architecture", "computed"),
    [
        # Rotary embeddings of Llama are stored in another order; the rest is only renamed.
        ("llama", {"attn_q", "attn_k", "attn_norm", "ffn_norm", "output_norm"}),
        # Gemma's norms are shifted by one; its embeddings lose their last rows.
        (
            "gemma3",
            {
                "attn_norm",
                "attn_q_norm",
                "attn_k_norm",
                "post_attention_norm",
                "ffn_norm",
                "post_ffw_norm",
                "output_norm",
            },
        ),
    ],
)
def test_only_computed_tensors_take_memory(
    models: dict[str, Path], tmp_path: Path, architecture: str, computed: set[str]
) -> None:
    source = HuggingFaceSource(models[architecture], tmp_path)
    names = {tensor.name for tensor in source.metadata.tensors()}
    in_memory = {name for name in names if source.memory_bytes(name)}
    assert {name.split(".")[-2] for name in in_memory} == computed
    assert "token_embd.weight" in names - in_memory
