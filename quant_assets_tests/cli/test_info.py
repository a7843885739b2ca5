"""`quant-assets info` on a small model folder."""

import json
from pathlib import Path

from typer.testing import CliRunner

from quant_assets.cli.app import app
from quant_assets_tests.models.tiny_models import make_model, tokenizer_model


def test_a_source_folder(tmp_path: Path) -> None:
    folder = make_model(tmp_path / "tiny", "qwen3", tokenizer_model())
    run = CliRunner().invoke(app, ["info", str(folder), "--format", "json"])
    assert run.exit_code == 0, run.exception
    facts = json.loads(run.stdout)
    assert facts["format"] == "float" and facts["architecture"] == "qwen3"
    assert facts["bits_per_weight"] == 16.0 and facts["layers"] == 2
    shown = CliRunner().invoke(app, ["info", str(folder)])
    assert "qwen3" in shown.stdout


def test_a_folder_without_a_model(tmp_path: Path) -> None:
    run = CliRunner().invoke(app, ["info", str(tmp_path)])
    assert run.exception is not None and getattr(run.exception, "exit_code", None) == 3
