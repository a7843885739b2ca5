"""A model streamed one layer at a time gives the logits of the whole model."""

from pathlib import Path

import pytest

from quant_assets.errors import InputError
from quant_assets_tests.models.tiny_models import make_model, tokenizer_model


@pytest.mark.parametrize("architecture", ["llama", "llama_tied", "qwen3"])
def test_logits_are_those_of_the_whole_model(tmp_path: Path, architecture: str) -> None:
    import torch
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM

    from quant_assets.workers.groupwise.streaming import StreamedModel

    folder = make_model(tmp_path, architecture, tokenizer_model())
    stored = load_file(folder / "model.safetensors")
    assert ("lm_head.weight" in stored) == (architecture != "llama_tied")
    streamed = StreamedModel(folder, "cpu", torch.float32)
    windows = torch.randint(streamed.config.vocab_size, (2, 16))
    got = torch.stack(list(streamed.logits(windows, 4, lambda _: None)))
    whole = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        expected = whole(windows).logits[:, -4:]
    torch.testing.assert_close(got, expected)


def test_a_model_without_its_head_is_rejected(tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    from quant_assets.workers.groupwise.streaming import StreamedModel

    file = make_model(tmp_path, "llama", tokenizer_model()) / "model.safetensors"
    tensors = load_file(file)
    del tensors["lm_head.weight"]
    save_file(tensors, file)
    with pytest.raises(InputError, match=r"do not hold 1 parameters of the model") as raised:
        StreamedModel(tmp_path, "cpu", torch.float32)
    assert "lm_head.weight" in str(raised.value)
