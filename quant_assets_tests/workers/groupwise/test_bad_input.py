"""Unusable inputs: one clear error each, nothing written, no worker started."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from quant_assets.cli.app import app
from quant_assets.errors import InputError
from quant_assets.settings import Settings


def truncated(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])


def without_config(folder: Path) -> None:
    (folder / "config.json").unlink()


def not_json(folder: Path) -> None:
    (folder / "config.json").write_text("{")


def quantized_already(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "gptq", "bits": 4, "group_size": 32}
    (folder / "config.json").write_text(json.dumps(config))


def with_code(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["auto_map"] = {"AutoModelForCausalLM": "modeling.Model"}
    config["model_type"] = "surprise"
    config["architectures"] = ["SurpriseForCausalLM"]
    (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize("method", ["gptq", "awq"])
@pytest.mark.parametrize(
    ("damage", "what"),
    [
        (truncated, "is cut off"),
        (without_config, "no config.json|cannot be read|no model"),
        (not_json, "cannot be read"),
        (quantized_already, "already quantized"),
        (shutil.rmtree, "no model|nothing|not exist"),
    ],
)
def test_an_unusable_source(
    method: str,
    damage: Callable[[Path], None],
    what: str,
    trained: Path,
    settings: Settings,
    tmp_path: Path,
) -> None:
    folder = settings.sources / f"{damage.__name__}-{method}"
    shutil.copytree(trained, folder)
    damage(folder)
    error = refused(folder, method, tmp_path, "--group-size", "32")
    import re

    assert re.search(what, f"{error.what} {error.why}"), str(error)


@pytest.mark.parametrize(
    ("method", "options", "what"),
    [
        ("gptq", ["--bits", "5"], "There is no quantization"),
        ("awq", ["--bits", "8"], "There is no quantization"),
        ("gptq", ["--group-size", "48"], "There is no quantization"),
        ("awq", ["--group-size", "-1"], "one group per row"),
        ("awq", ["--desc-act"], "no act-order"),
        ("gptq", ["--engine", "autoawq"], "does not write GPTQ"),
        ("gptq", ["--calibration", "missing.txt"], "no calibration text"),
        ("awq", ["--text", "missing.txt", "--group-size", "32"], "cannot be read"),
    ],
)
def test_settings_that_do_not_exist(
    method: str, options: list[str], what: str, trained: Path, settings: Settings, tmp_path: Path
) -> None:
    assert what in refused(trained, method, tmp_path, *options).what


def refused(model: Path, method: str, output: Path, *options: str) -> InputError:
    run = CliRunner().invoke(
        app,
        ["quantize", str(model), "--to", method, "--output-dir", str(output / "out"), *options],
    )
    assert isinstance(run.exception, InputError), run.exception
    assert not list(output.rglob("*.safetensors"))
    return run.exception
