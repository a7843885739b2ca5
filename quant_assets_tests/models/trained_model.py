"""A tiny trained model, so that bad rounding shows in its perplexity.

`python -m quant_assets_tests.models.trained_model FOLDER` trains it in a few seconds.
"""

import sys
from pathlib import Path

from quant_assets_tests.models.tiny_models import calibration_text, make_model, tokenizer_model


def train_model(folder: Path) -> None:
    """Train a Llama of 3 layers on the beginning of Python's reference and save it in `folder`."""
    import sentencepiece
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(1)
    make_model(
        folder, "llama", tokenizer_model(), dtype="float32", hidden_size=128, intermediate_size=256,
        num_hidden_layers=3, head_dim=32, num_key_value_heads=4, rope_theta=500000.0,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    tokens = torch.tensor(pieces.encode(calibration_text()[:200_000]))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    generator = torch.Generator().manual_seed(1)
    for _ in range(120):
        starts = torch.randint(len(tokens) - 64, (16,), generator=generator)
        batch = torch.stack([tokens[start : start + 64] for start in starts])
        loss = model(input_ids=batch, labels=batch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    # Some inputs of a matrix are large and their weights small, as in large models: plain rounding
    # ruins those weights, and methods that consider the inputs preserve them. The model's outputs
    # are unchanged.
    with torch.no_grad():
        for layer in model.model.layers:
            attention, mlp = layer.self_attn, layer.mlp
            for norm, readers in (
                (layer.input_layernorm, (attention.q_proj, attention.k_proj, attention.v_proj)),
                (layer.post_attention_layernorm, (mlp.gate_proj, mlp.up_proj)),
            ):
                scales = torch.exp(torch.randn(128, generator=generator) * 1.0)
                norm.weight *= scales
                for reader in readers:
                    reader.weight /= scales
    model.to(torch.float16).save_pretrained(folder)


if __name__ == "__main__":
    train_model(Path(sys.argv[1]))
