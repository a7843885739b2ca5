"""Conversions to AWQ and GPTQ end to end on a small trained model, with both ends validated."""

from pathlib import Path

import pytest

from quant_assets.artifacts.manifest import ArtifactManifest
from quant_assets.errors import ConfirmationRequired
from quant_assets.quantize.groupwise.layout import check_layout
from quant_assets.settings import Settings
from quant_assets_tests.quantize.conversion.conversions import assert_valid, convert

# Both quantizers run in separate environments.
pytestmark = pytest.mark.quantizers

NUMBERS = ("--group-size", "32", "--calibration-samples", "64", "--sequence-length", "64",
           "--device", "cpu", "--threads", "1")  # fmt: skip


@pytest.fixture(scope="module")
def gguf(trained: Path, settings: Settings, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = convert(trained, "gguf", tmp_path_factory.mktemp("gguf"), "--level", "Q8_0")
    assert run.exit_code == 0, run.exception
    return Path(run.stdout.strip())


@pytest.fixture(scope="module")
def awq(gguf: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return confirmed(gguf, "awq", tmp_path_factory.mktemp("awq"))


@pytest.fixture(scope="module")
def gptq(gguf: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return confirmed(gguf, "gptq", tmp_path_factory.mktemp("gptq"), "--bits", "8")


def test_gguf_to_awq(gguf: Path, awq: Path) -> None:
    assert_converted("gguf", gguf, awq)


def test_gguf_to_gptq(gguf: Path, gptq: Path) -> None:
    assert_converted("gguf", gguf, gptq)


def test_awq_to_gptq(awq: Path, tmp_path: Path) -> None:
    assert_converted("awq", awq, confirmed(awq, "gptq", tmp_path, "--bits", "3"))


def test_gptq_to_awq(gptq: Path, tmp_path: Path) -> None:
    assert_converted("gptq", gptq, confirmed(gptq, "awq", tmp_path))


def confirmed(model: Path, target: str, output: Path, *options: str) -> Path:
    """The artifact of a conversion that is refused first and then confirmed."""
    folder = output / "out"
    refused = convert(model, target, folder, *NUMBERS, *options)
    assert isinstance(refused.exception, ConfirmationRequired), refused.exception
    assert "both losses add up" in refused.exception.why and not folder.exists()
    run = convert(model, target, folder, *NUMBERS, *options, "--yes")
    assert run.exit_code == 0, run.exception
    assert "both losses add up" in run.stderr
    assert "warning: No calibration set was named." in run.stderr
    (made,) = (path.parent for path in folder.glob("*/manifest.json"))
    return made


def assert_converted(origin: str, source: Path, made: Path) -> None:
    manifest = ArtifactManifest.model_validate_json((made / "manifest.json").read_bytes())
    assert manifest.status == "valid" and manifest.perplexity is not None
    assert manifest.job.parameters["converted_from"] == origin
    assert manifest.job.parameters["double_quantization"] == "true"
    assert "No calibration set was named." in manifest.engine["calibration remarks"]
    assert check_layout(made) == 3 * 7
    assert_valid(source)
    assert_valid(made)
