"""A tiny model that has learnt something, so that rounding it badly shows in its perplexity."""

import subprocess
import sys
from pathlib import Path

import pytest

from quant_assets.models.source import SourceModel, resolve_source
from quant_assets.quantize.calibration import CalibrationText, calibration_text
from quant_assets.settings import Settings

TRAIN = """
import sys
from pathlib import Path

sys.path.insert(0, sys.argv[2])
import torch
from tiny_models import calibration_text, make_model, tokenizer_model

torch.set_num_threads(1)
folder = Path(sys.argv[1])
make_model(
    folder, "llama", tokenizer_model(), dtype="float32", hidden_size=128, intermediate_size=256,
    num_hidden_layers=3, head_dim=32, num_key_value_heads=4, rope_theta=500000.0,
)
import sentencepiece
from transformers import AutoModelForCausalLM

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
model.to(torch.float16).save_pretrained(folder)
"""


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama of 3 layers, trained for some seconds in a process of its own."""
    folder = tmp_path_factory.mktemp("trained") / "tiny"
    tiny_models = Path(__file__).parent.parent / "gguf"
    done = subprocess.run(
        [sys.executable, "-c", TRAIN, folder, tiny_models], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


@pytest.fixture(scope="session")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    return Settings(home=tmp_path_factory.mktemp("home"))


@pytest.fixture(scope="session")
def source(trained: Path, settings: Settings) -> SourceModel:
    return resolve_source(str(trained), settings)


@pytest.fixture(scope="session")
def calibration(settings: Settings, tmp_path_factory: pytest.TempPathFactory) -> CalibrationText:
    """The second half of what the model learnt from."""
    from pydoc_data.topics import topics

    text = "\n".join(topics[name] for name in sorted(topics))[100_000:200_000]
    path = tmp_path_factory.mktemp("calibration") / "text.txt"
    path.write_text(text, encoding="utf-8")
    return calibration_text(str(path), settings.cache)
