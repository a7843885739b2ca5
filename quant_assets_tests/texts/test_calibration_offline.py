"""The default calibration text without a network."""

from pathlib import Path

import pytest

from quant_assets.models.identity import sha256_of
from quant_assets.texts.calibration import calibration_text, default_calibration_text


def test_offline_the_shipped_text_is_used_with_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    text = default_calibration_text(tmp_path)
    assert text.name == "python-reference-second-half"
    assert text.warning is not None
    assert text.path.stat().st_size > 200_000
    assert text.sha256 == sha256_of(text.path)


def test_a_cached_wikitext_is_used_without_the_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    kept = tmp_path / "texts" / "wikitext-2-train.txt"
    kept.parent.mkdir()
    kept.write_text("kept")
    text = default_calibration_text(tmp_path)
    assert (text.name, text.path, text.warning) == ("wikitext-2-train", kept, None)


@pytest.mark.parametrize("cached", [True, False])
def test_an_unnamed_text_always_brings_a_warning(
    cached: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    if cached:
        (tmp_path / "texts").mkdir()
        (tmp_path / "texts" / "wikitext-2-train.txt").write_text("kept")
    text = calibration_text(None, tmp_path)
    assert text.warning is not None and text.warning.startswith("No calibration set was named.")
    used = "WikiText-2 (its training split) is used" if cached else "language reference is used"
    assert used in text.warning and "--calibration" in text.warning
    unwarned = default_calibration_text(tmp_path)
    assert (text.path, text.sha256) == (unwarned.path, unwarned.sha256), "the job id is the same"
