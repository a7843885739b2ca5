import hashlib
from pathlib import Path

import duckdb
import pytest
from huggingface_hub import constants

from quant_assets.errors import InputError
from quant_assets.texts.evaluation import evaluation_text


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")


def test_offline_the_python_reference_is_used(tmp_path: Path, offline: None) -> None:
    text = evaluation_text("auto", tmp_path)
    assert text.name == "python-reference"
    content = text.path.read_bytes()
    assert len(content) > 300_000
    assert text.sha256 == hashlib.sha256(content).hexdigest()
    assert evaluation_text("auto", tmp_path) == text


def test_offline_wikitext_is_an_error_when_asked_for_by_name(tmp_path: Path, offline: None) -> None:
    with pytest.raises(InputError, match="WikiText-2 cannot be fetched"):
        evaluation_text("wikitext-2", tmp_path)


def test_a_cached_text_needs_no_network(tmp_path: Path, offline: None) -> None:
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "wikitext-2.txt").write_text(" = Title = \n")
    assert evaluation_text("auto", tmp_path).name == "wikitext-2"


def test_offline_the_cache_of_the_hub_is_used(
    tmp_path: Path, offline: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = "b" * 40
    repository = tmp_path / "hub" / "datasets--Salesforce--wikitext"
    folder = repository / "snapshots" / commit / "wikitext-2-raw-v1"
    folder.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    rows = "select unnest([' = Title = \n', 'words \n']) as text"
    duckdb.sql(f"copy ({rows}) to '{folder / 'test-00000-of-00001.parquet'}'")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    text = evaluation_text("wikitext-2", tmp_path)
    assert text.path.read_text() == " = Title = \nwords \n"


def test_a_user_file_can_be_chosen(tmp_path: Path) -> None:
    path = tmp_path / "mine.txt"
    path.write_text("words")
    assert evaluation_text(path, tmp_path).name == "mine"
    with pytest.raises(InputError, match=r"absent\.txt"):
        evaluation_text(tmp_path / "absent.txt", tmp_path)
