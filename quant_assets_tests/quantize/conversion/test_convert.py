"""Restoring plain weights, converting to GGUF, and the user's agreement to losses."""

import io
import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from quant_assets.cli.app import app
from quant_assets.errors import ConfirmationRequired, InputError, ResourceError
from quant_assets.models.source import resolve_source
from quant_assets.processes.protocol import EventChannel
from quant_assets.quantize.conversion.convert import conversion_loss, plain_folder
from quant_assets.quantize.conversion.plain_weights import UnpackJob, source_manifest
from quant_assets.settings import Settings
from quant_assets_tests.models.tiny_models import make_model, tokenizer_model

TEXTS = (
    "The quick brown fox jumps over the lazy dog.",
    "  Leading spaces, 12345 digits and\n\nline breaks\tand tabs ",
    "def f(x: int) -> str:\n    return f'{x!r}'",
    "Größe, naïve café, 日本語のテキスト, Привет 🌍",
)


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(home=tmp_path / "home")


def test_every_weight_comes_back_as_it_was_meant(
    packed: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    import torch
    from safetensors.torch import load_file

    from quant_assets.workers.checkpoint.unpack import unpack

    folder, meant = packed
    answer = unpack(UnpackJob(source=folder, output=tmp_path / "out"), EventChannel(io.StringIO()))
    assert answer.n_matrices == sum("_proj" in name for name in meant)
    restored = load_file(tmp_path / "out" / "model.safetensors")
    assert restored.keys() == meant.keys()
    for name, tensor in meant.items():
        assert torch.allclose(restored[name].float(), tensor.float(), atol=1e-3, rtol=1e-3), name


@pytest.mark.parametrize("packed", ["gptq-4"], indirect=True)
def test_a_plain_folder_knows_its_origin(
    packed: tuple[Path, dict[str, Any]], settings: Settings, tmp_path: Path
) -> None:
    folder, _ = packed
    source = resolve_source(str(folder), settings)
    made = plain_folder(source, tmp_path / "out", settings)
    assert "quantization_config" not in json.loads((made.path / "config.json").read_text())
    for name in ("tokenizer.model", "tokenizer_config.json"):
        assert (made.path / name).read_bytes() == (folder / name).read_bytes()
    manifest = source_manifest(made.path)
    assert manifest is not None and manifest.origin_identity == source.identity
    assert manifest.weights_file_type == "GPTQ-4"
    assert plain_folder(source, tmp_path / "out", settings) == made
    other = source.model_copy(update={"identity": "another"})
    with pytest.raises(InputError, match="exists"):
        plain_folder(other, tmp_path / "out", settings)
    (tmp_path / ".out.part").symlink_to(made.path)
    with pytest.raises(ResourceError, match="link"):
        plain_folder(other, tmp_path / "out", settings, overwrite=True)
    assert (made.path / "config.json").exists()
    (tmp_path / ".out.part").unlink()
    plain_folder(other, tmp_path / "out", settings, overwrite=True)
    replaced = source_manifest(tmp_path / "out")
    assert replaced is not None and replaced.origin_identity == "another"
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_plain_weights_need_no_folder(plain: Path, settings: Settings, tmp_path: Path) -> None:
    source = resolve_source(str(plain), settings)
    assert plain_folder(source, tmp_path / "out", settings) == source
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("packed", ["gptq-3"], indirect=True)
def test_significant_losses(plain: Path, packed: tuple[Path, dict[str, Any]]) -> None:
    folder, _ = packed
    assert conversion_loss(folder, "gguf", 4.8).double_quantization
    assert not conversion_loss(folder, "hf", 16.0).significant
    assert not conversion_loss(plain, "awq", 4.2).significant
    assert conversion_loss(plain, "gptq", 3.2).significant


@pytest.mark.parametrize("packed", ["awq-4"], indirect=True)
def test_nothing_is_written_without_agreement(
    packed: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    run = CliRunner().invoke(
        app, ["convert", str(packed[0]), "--to", "gguf", "--output-dir", str(tmp_path / "out")]
    )
    assert isinstance(run.exception, ConfirmationRequired)
    assert run.exception.exit_code == 6
    assert "--yes" in run.exception.next_step
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("packed", ["awq-4"], indirect=True)
def test_to_gguf_with_agreement(packed: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    folder, _ = packed
    out = tmp_path / "out"
    run = CliRunner().invoke(
        app,
        [
            "convert", str(folder), "--to", "gguf", "--level", "Q8_0", "--yes",
            "--verbosity", "quiet", "--output-dir", str(out), "--threads", "1",
        ],
    )  # fmt: skip
    assert run.exit_code == 0, run.exception
    assert "quantized again" in run.stderr
    file = out / f"{folder.name}-Q8_0.gguf"
    lineage = json.loads(file.with_suffix(".lineage.json").read_text())
    assert lineage["double_quantization"] == "true" and lineage["converted_from"] == "awq"
    import sentencepiece

    pieces = sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    assert gguf_tokens(file)[0] == pieces.encode(TEXTS[0])


def test_gguf_to_plain_folder_keeps_tokens_and_chat_template(smollm2: Path, tmp_path: Path) -> None:
    run = CliRunner().invoke(
        app,
        ["convert", str(smollm2), "--to", "hf", "--verbosity", "quiet",
         "--output-dir", str(tmp_path)],
    )  # fmt: skip
    assert run.exit_code == 0, run.exception
    assert "does not come back" in run.stderr
    (folder,) = tmp_path.iterdir()
    assert gguf_tokens(smollm2) == hf_tokens(folder)
    from llama_cpp import Llama
    from transformers import AutoTokenizer

    template = AutoTokenizer.from_pretrained(folder).chat_template
    model = Llama(str(smollm2), vocab_only=True, verbose=False)
    assert template == model.metadata["tokenizer.chat_template"]


def test_gemma_keeps_its_tokens_and_its_range(tmp_path: Path) -> None:
    """No space before the first word, and a type that its activations fit into."""
    folder = make_model(tmp_path / "gemma", "gemma3", tokenizer_model())
    file = tmp_path / "gemma-Q8_0.gguf"
    for source, *options in ((folder, "gguf", "--level", "Q8_0", "--threads", "1"), (file, "hf")):
        run = CliRunner().invoke(
            app,
            ["convert", str(source), "--to", *options, "--yes", "--verbosity", "quiet",
             "--output-dir", str(tmp_path)],
        )  # fmt: skip
        assert run.exit_code == 0, run.exception
    plain = tmp_path / "gemma-Q8_0-hf"
    assert gguf_tokens(file) == hf_tokens(plain)
    assert json.loads((plain / "config.json").read_text())["dtype"] == "bfloat16"
    manifest = source_manifest(plain)
    assert manifest is not None and manifest.dtype == "bfloat16"
    modes = {path.stat().st_mode for path in plain.iterdir()}
    assert len(modes) == 1, "every file can be read by those who can read the others"


def gguf_tokens(file: Path) -> list[list[int]]:
    from llama_cpp import Llama

    model = Llama(str(file), vocab_only=True, verbose=False)
    return [model.tokenize(text.encode(), add_bos=False) for text in TEXTS]


def hf_tokens(folder: Path) -> list[list[int]]:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    return [tokenizer(text, add_special_tokens=False)["input_ids"] for text in TEXTS]
