"""Without numbers, a job takes the standard as far as model and text allow, and records it."""

import io
import json
from pathlib import Path

import pytest
import sentencepiece
from typer.testing import CliRunner

from quant_assets.artifacts.manifest import ArtifactManifest
from quant_assets.cli.app import app
from quant_assets.errors import InputError
from quant_assets.models.source import SourceModel
from quant_assets.processes.protocol import EventChannel
from quant_assets.quantize.groupwise.calibration import TokenCountJob
from quant_assets.settings import Settings
from quant_assets.workers.groupwise.calibration import calibration_windows, source_tokenizer
from quant_assets.workers.groupwise.token_count import count_tokens

CONTEXT = 256  # of the tiny model


@pytest.fixture
def words(tmp_path: Path) -> Path:
    """A model folder whose tokenizer splits a text into words."""
    import torch
    from safetensors.torch import save_file
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit

    tokenizer = Tokenizer(WordLevel({"[UNK]": 0}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text(
        '{"tokenizer_class": "PreTrainedTokenizerFast", "unk_token": "[UNK]"}'
    )
    save_file({"weight": torch.zeros(1)}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    return tmp_path


def test_all_counted_tokens_can_be_used_and_no_more(words: Path, fixed_text: Path) -> None:
    job = TokenCountJob(source=words, text=fixed_text)
    n_tokens = count_tokens(job, EventChannel(io.StringIO())).n_tokens
    assert n_tokens == len(fixed_text.read_text().split())
    tokenizer = source_tokenizer(words)
    assert calibration_windows(tokenizer, fixed_text, 1, n_tokens).shape == (1, n_tokens)
    with pytest.raises(InputError, match="too short"):
        calibration_windows(tokenizer, fixed_text, 1, n_tokens + 1)


@pytest.mark.quantizers
def test_the_manifest_records_what_was_used(
    source: SourceModel, settings: Settings, fixed_text: Path, tmp_path: Path
) -> None:
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(source.path / "tokenizer.model"))
    tokens = len(pieces.encode(fixed_text.read_text()))
    run = CliRunner().invoke(
        app,
        [
            "quantize", str(source.path), "--to", "gptq", "--group-size", "32", "--no-gate",
            "--calibration", str(fixed_text), "--device", "cpu", "--threads", "1",
            "--output-dir", str(tmp_path), "--format", "json",
        ],
    )  # fmt: skip
    assert run.exit_code == 0, run.exception
    samples = tokens // CONTEXT
    made = ArtifactManifest.model_validate(json.loads(run.stdout))
    assert made.job.parameters["samples"] == samples < 128
    assert made.job.parameters["sequence_length"] == CONTEXT
    assert made.engine["calibration"] == fixed_text.name
    assert made.engine["calibration tokens"] == str(samples * CONTEXT)
    used = f"{samples} samples of {CONTEXT} tokens instead of 128 samples of 2048 tokens"
    assert used in made.engine["calibration remarks"]
    assert used in run.stderr and "No calibration set was named" not in run.stderr
