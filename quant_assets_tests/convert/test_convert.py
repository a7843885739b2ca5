"""Back to plain weights, on to GGUF, and who has to agree."""

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from quant_assets.cli.app import app
from quant_assets.errors import ConfirmationRequired, InputError
from quant_assets.models.dequantize import source_manifest
from quant_assets.models.source import resolve_source
from quant_assets.quantize.convert import conversion_loss, plain_folder
from quant_assets.settings import Settings


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(home=tmp_path / "home")


def test_every_weight_comes_back_as_it_was_meant(
    packed: tuple[Path, dict[str, Any]], settings: Settings, tmp_path: Path
) -> None:
    import torch
    from safetensors.torch import load_file

    folder, meant = packed
    source = resolve_source(str(folder), settings)
    made = plain_folder(source, tmp_path / "out", settings)
    restored = load_file(made.path / "model.safetensors")
    assert restored.keys() == meant.keys()
    for name, tensor in meant.items():
        assert torch.allclose(restored[name].float(), tensor.float(), atol=1e-3, rtol=1e-3), name
    assert "quantization_config" not in json.loads((made.path / "config.json").read_text())
    for name in ("tokenizer.model", "tokenizer_config.json"):
        assert (made.path / name).read_bytes() == (folder / name).read_bytes()
    manifest = source_manifest(made.path)
    assert manifest is not None and manifest.origin_identity == source.identity
    with pytest.raises(InputError, match="exists"):
        plain_folder(source, tmp_path / "out", settings)


def test_plain_weights_need_no_folder(plain: Path, settings: Settings, tmp_path: Path) -> None:
    source = resolve_source(str(plain), settings)
    assert plain_folder(source, tmp_path / "out", settings) == source
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("packed", ["gptq-3"], indirect=True)
def test_what_counts_as_significant(plain: Path, packed: tuple[Path, dict[str, Any]]) -> None:
    folder, _ = packed
    assert conversion_loss(folder, "gguf", 4.8).double_quantization
    assert not conversion_loss(folder, "hf", 16.0).significant
    assert not conversion_loss(plain, "awq", 4.2).significant
    assert conversion_loss(plain, "gptq", 3.2).significant


@pytest.mark.parametrize("packed", ["awq-4"], indirect=True)
def test_without_agreement_nothing_is_written(
    packed: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    run = CliRunner().invoke(
        app, ["convert", str(packed[0]), "--to", "gguf", "--output-dir", str(tmp_path / "out")]
    )
    assert isinstance(run.exception, ConfirmationRequired)
    assert run.exception.exit_code == 6
    assert "--yes" in run.exception.next_step
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("packed", ["gptq-4", "awq-4"], indirect=True)
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
    file = out / f"{folder.name}-Q8_0.gguf"
    assert file.is_file()
    told = json.loads(file.with_suffix(".lineage.json").read_text())
    assert told["double_quantization"] == "true"
    assert told["converted_from"] in ("gptq", "awq")
