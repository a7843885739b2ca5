"""The torch workers on a tiny random model."""

from pathlib import Path

import numpy as np
import pytest

from quant_assets.bench.divergence import baseline_writer, scored_rows
from quant_assets.bench.jobs import (
    CellJob,
    CellMeasurement,
    ChatJob,
    ChatReplies,
    QualityJob,
    QualityMeasurement,
)
from quant_assets.errors import InputError
from quant_assets.processes.supervisor import run_worker

VOCABULARY, LAYERS, HEADS, HEAD_SIZE, CONTEXT = 64, 2, 2, 8, 32


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random two-layer Llama whose tokenizer has one token per character."""
    import torch
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("tiny")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=32, intermediate_size=64, num_hidden_layers=LAYERS,
        num_attention_heads=4, num_key_value_heads=HEADS, max_position_embeddings=128,
        bos_token_id=0, eos_token_id=1,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    words = {"<s>": 0, "</s>": 1, "<unk>": 2}
    words |= {chr(ord("A") + n): n + 3 for n in range(VOCABULARY - 3)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    tokenizer.decoder = decoders.Fuse()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )
    fast.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %}:"
    fast.save_pretrained(folder)
    return folder


def test_a_cell_decodes_the_batch_together(tiny: Path) -> None:
    job = CellJob(
        model_path=str(tiny), format="hf", batch_size=3, prompt_tokens=8, generated_tokens=4,
        warmups=1, runs=2, threads=1, device="cpu",
    )  # fmt: skip
    measured = run_worker("torch.bench", job, CellMeasurement)
    assert [len(sample.token_ms) for sample in measured.samples] == [4, 4]
    expected = 2 * LAYERS * 3 * (8 + 4) * HEADS * HEAD_SIZE * 4
    assert measured.kv_cache_bytes == measured.kv_cache_bytes_expected == expected
    assert measured.device == "cpu" and measured.peak_vram_bytes is None
    assert {"torch", "transformers"} <= set(measured.library_versions)


def test_quality_scores_the_baselines_windows(tiny: Path, tmp_path: Path) -> None:
    windows = np.random.default_rng(0).integers(3, VOCABULARY, size=(2, CONTEXT)).astype(np.int32)
    uniform = np.zeros((scored_rows(CONTEXT), VOCABULARY), dtype=np.float32)
    path = tmp_path / "uniform.kld"
    with baseline_writer(path, windows, VOCABULARY) as writer:
        for _ in windows:
            writer.append(uniform)
    measured = run_worker(
        "torch.quality",
        QualityJob(
            model_path=str(tiny), format="hf", baseline_path=str(path), context=CONTEXT, threads=1
        ),
        QualityMeasurement,
    )
    assert measured.scored_tokens == 2 * scored_rows(CONTEXT)
    assert measured.baseline_perplexity == pytest.approx(VOCABULARY, rel=1e-3)
    assert measured.perplexity == pytest.approx(_perplexity(tiny, windows), rel=1e-4)
    assert measured.kl_divergence and measured.kl_divergence > 0


def _perplexity(folder: Path, windows: np.ndarray) -> float:
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder)
    tokens = torch.tensor(windows, dtype=torch.long)
    with torch.no_grad():
        log_probabilities = model(tokens).logits.log_softmax(-1)
    rows = range(CONTEXT // 2, CONTEXT - 1)
    losses = [-log_probabilities[w, r, tokens[w, r + 1]] for w in range(len(tokens)) for r in rows]
    return float(torch.stack(losses).mean().exp())


def test_answers_do_not_depend_on_earlier_prompts(tiny: Path) -> None:
    prompts = ["AB", "C", "AB"]
    job = ChatJob(model_path=str(tiny), format="hf", prompts=prompts, max_tokens=5, threads=1)
    replies = run_worker("torch.chat", job, ChatReplies).replies
    assert len(replies) == 3 and replies[0]
    assert replies[0] == replies[2]


def test_a_folder_without_a_model_is_an_input_error(tmp_path: Path) -> None:
    job = QualityJob(model_path=str(tmp_path), format="hf", text_path="x", threads=1)
    with pytest.raises(InputError, match=r"has no config\.json"):
        run_worker("torch.quality", job, QualityMeasurement)
