"""Calibration texts of every format, and invalid ones."""

import json
from pathlib import Path

import duckdb
import pytest

from quant_assets.errors import InputError
from quant_assets.texts.calibration import calibration_text

SENTENCE = "The lock keeper lives by the water and opens the gates for every barge. "


def test_text_jsonl_and_parquet(tmp_path: Path) -> None:
    plain = tmp_path / "a.txt"
    plain.write_text(SENTENCE * 10)
    lines = tmp_path / "b.jsonl"
    lines.write_text("".join(json.dumps({"content": SENTENCE}) + "\n" for _ in range(10)))
    table = tmp_path / "c.parquet"
    duckdb.execute(
        "copy (select ? as text from range(10)) to '" + str(table) + "' (format parquet)",
        [SENTENCE],
    )
    for path in (plain, lines, table):
        found = calibration_text(str(path), tmp_path / "cache")
        text = found.path.read_text()
        assert text.count("lock keeper") == 10
        assert found.warning is None
        assert found == calibration_text(str(path), tmp_path / "cache")


@pytest.mark.parametrize(
    ("name", "content", "what"),
    [
        ("missing.txt", None, "There is no calibration text"),
        ("empty.txt", b"", "is empty"),
        ("blank.txt", b" \n \n", "is empty"),
        ("short.txt", b"A few words.", "is too short"),
        ("image.png", b"\x89PNG\r\n\x1a\n\x00\xff", "is not text"),
        ("zeros.txt", b"\x00" * 1000, "is not text"),
        ("bad.jsonl", b'{"text": "a"}\n{"text": \n', "Line 2 of"),
        ("numbers.jsonl", b'{"number": 3}\n', "has no text"),
        ("broken.parquet", b"PAR1 not really", "cannot be read as Parquet"),
    ],
)
def test_bad_files(tmp_path: Path, name: str, content: bytes | None, what: str) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=what):
        calibration_text(str(path), tmp_path / "cache")


def test_data_set_that_cannot_be_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match="cannot be fetched"):
        calibration_text("hub:nobody/no-such-data-set", tmp_path)
