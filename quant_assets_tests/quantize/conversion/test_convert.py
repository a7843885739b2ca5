"""Restoring plain weights, converting to GGUF, and the user's agreement to losses."""

import io
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from quant_assets.cli.app import app
from quant_assets.errors import CheckFailed, ConfirmationRequired, InputError, ResourceError
from quant_assets.formats.gguf_header import read_gguf_header
from quant_assets.models.source import resolve_source
from quant_assets.processes.protocol import EventChannel
from quant_assets.quantize.conversion.convert import conversion_loss, plain_folder
from quant_assets.quantize.conversion.plain_weights import UnpackJob, source_manifest
from quant_assets.quantize.groupwise.layout import check_layout
from quant_assets.settings import Settings, get_settings
from quant_assets.workers.gguf.imatrix_file import MatrixInputs, write_imatrix
from quant_assets_tests.models.tiny_models import make_model, tokenizer_model
from quant_assets_tests.quantize.conversion.conversions import assert_valid, convert, converted

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


@pytest.mark.parametrize("packed", ["gptq-4", "awq-4"], indirect=True)
@pytest.mark.parametrize("target", ["hf", "gguf"])
def test_source_and_result_of_a_packed_folder_are_valid(
    target: str, packed: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    folder, _ = packed
    assert check_layout(folder) == 2 * 7
    level = ["--level", "Q4_0", "--threads", "1"] if target == "gguf" else []
    made = converted(folder, target, tmp_path / "out", *level)
    assert_valid(made)
    damaged = tmp_path / "damaged"
    shutil.copytree(folder, damaged)
    config = json.loads((damaged / "config.json").read_text())
    config["quantization_config"]["group_size"] = 64
    (damaged / "config.json").write_text(json.dumps(config))
    run = convert(damaged, target, tmp_path / "none", "--yes", *level)
    assert isinstance(run.exception, CheckFailed), run.exception
    assert not (tmp_path / "none").exists()


@pytest.fixture(scope="session")
def tiny_gguf(plain: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = convert(plain, "gguf", tmp_path_factory.mktemp("gguf"), "--level", "Q8_0")
    assert run.exit_code == 0, run.exception
    return Path(run.stdout.strip())


@pytest.mark.parametrize("target", ["hf", "gguf"])
def test_source_and_result_of_a_gguf_are_valid(
    target: str, tiny_gguf: Path, tmp_path: Path
) -> None:
    assert_valid(tiny_gguf)
    level = ["--level", "Q5_0", "--threads", "1"] if target == "gguf" else []
    assert_valid(converted(tiny_gguf, target, tmp_path / "out", *level))
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(tiny_gguf.read_bytes()[:-500])
    run = convert(cut, target, tmp_path / "none", "--yes", *level)
    assert isinstance(run.exception, InputError), run.exception
    assert not (tmp_path / "none").exists()


@pytest.fixture
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """An installation of its own for commands."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("QUANT_ASSETS_HOME", str(tmp_path_factory.mktemp("home")))
        get_settings.cache_clear()
        yield
    get_settings.cache_clear()


@pytest.fixture
def tiny_imatrix(plain: Path, tmp_path: Path) -> Path:
    """Random importances of every matrix of the tiny model."""
    import numpy as np

    generator = np.random.default_rng(3)
    widths = {
        **dict.fromkeys(("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up"), 64),
        "ffn_down": 128,
    }
    inputs = {
        f"blk.{layer}.{name}.weight": MatrixInputs(
            generator.exponential(size=(1, width)) * 100, np.array([100])
        )
        for layer in range(2)
        for name, width in widths.items()
    }
    path = tmp_path / "tiny.imatrix.gguf"
    write_imatrix(path, inputs, dataset="random", n_chunks=1, chunk_tokens=100)
    return path


def test_options_reach_the_target(
    home: None, plain: Path, tiny_imatrix: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    level = ["--level", "Q4_0", "--threads", "1"]
    run = convert(plain, "gguf", out, *level, "--imatrix", str(tiny_imatrix))
    assert run.exit_code == 0, run.exception
    (made,) = out.glob("*.gguf")
    named = read_gguf_header(made).values["quantize.imatrix.file"]
    assert named == tiny_imatrix.name
    weighted = made.read_bytes()
    assert convert(plain, "gguf", tmp_path / "plain", *level).exit_code == 0
    (unweighted,) = (tmp_path / "plain").glob("*.gguf")
    assert unweighted.read_bytes()[-1000:] != weighted[-1000:]
    requests: list[Any] = []

    def make(_: object, request: Any, *__: object, **___: object) -> Path:
        requests.append(request.target)
        return tmp_path

    monkeypatch.setattr("quant_assets.cli.convert.convert_model", make)
    words = tmp_path / "words.txt"
    words.write_text("Some words to calibrate on. " * 50)
    options = ["--desc-act", "--no-sym", "--group-size", "32", "--no-resume",
               "--calibration", str(words), "--text", str(words)]  # fmt: skip
    assert convert(plain, "gptq", out, *options).exit_code == 0
    (request,) = requests
    assert request.desc_act and request.sym is False and not request.resume


@pytest.mark.parametrize(
    ("command", "target", "options", "what"),
    [
        ("convert", "awq", ["--imatrix", "x.gguf"], "only --to gguf takes it"),
        ("convert", "hf", ["--level", "Q4_0"], "only --to gguf takes it"),
        ("convert", "gguf", ["--bits", "3"], "only --to gptq or awq takes it"),
        ("convert", "gguf", ["--desc-act"], "only --to gptq or awq takes it"),
        ("convert", "hf", ["--no-sym"], "only --to gptq or awq takes it"),
        ("convert", "awq", ["--desc-act"], "no act-order"),
        ("convert", "awq", ["--sym"], "not symmetric"),
        ("convert", "gptq", ["--engine", "autoawq"], "does not write GPTQ"),
        ("convert", "gptq", ["--group-size", "128"], "do not divide"),
        ("convert", "gptq", ["--calibration", "none.txt"], "no calibration text"),
        ("convert", "gguf", ["--level", "IQ2_M"], "needs an importance matrix"),
        ("convert", "gguf", ["--imatrix", "none.gguf"], "none.gguf"),
        ("quantize", "awq", ["--imatrix", "x.gguf"], "only --to gguf takes it"),
        ("quantize", "gguf", ["--desc-act"], "only --to gptq or awq takes it"),
        ("quantize", "awq", ["--sym"], "not symmetric"),
    ],
)
def test_contradictory_options_are_refused_before_any_work(
    command: str,
    target: str,
    options: list[str],
    what: str,
    home: None,
    plain: Path,
    tmp_path: Path,
) -> None:
    groups = ["--group-size", "32"] if target in ("gptq", "awq") else []
    run = convert(plain, target, tmp_path / "out", *groups, *options, "--yes", command=command)
    told = run.stderr if run.exit_code == 2 else str(run.exception)
    assert run.exit_code == 2 or isinstance(run.exception, InputError), run.exception
    assert what in " ".join(told.replace("│", " ").split())
    assert not (tmp_path / "out").exists()


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
