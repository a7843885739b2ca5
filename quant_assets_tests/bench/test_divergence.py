from pathlib import Path

import numpy as np
import pytest

from quant_assets.bench.divergence import (
    Baseline,
    Divergence,
    baseline_writer,
    cut_windows,
    negative_log_likelihoods,
    scored_targets,
)
from quant_assets.errors import InputError

VOCABULARY, CONTEXT, WINDOWS = 101, 16, 3
ROWS = CONTEXT - 1 - CONTEXT // 2


def _logits(seed: int, scale: float = 2.0) -> np.ndarray:
    values = np.random.default_rng(seed).normal(size=(WINDOWS, ROWS, VOCABULARY)) * scale
    return values.astype(np.float32)


@pytest.fixture
def windows() -> np.ndarray:
    tokens = np.random.default_rng(0).integers(0, VOCABULARY, size=(WINDOWS, CONTEXT))
    return tokens.astype(np.int32)


@pytest.fixture
def baseline(tmp_path: Path, windows: np.ndarray) -> Baseline:
    path = tmp_path / "base.kld"
    with baseline_writer(path, windows, VOCABULARY) as writer:
        for logits in _logits(1):
            writer.append(logits)
    return Baseline(path)


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    wide = logits.astype(np.float64)
    return wide - np.log(np.exp(wide).sum(axis=-1, keepdims=True))


def test_a_uniform_model_has_the_vocabularys_size_as_perplexity() -> None:
    values = negative_log_likelihoods(
        np.zeros((ROWS, VOCABULARY), dtype=np.float32), np.arange(ROWS, dtype=np.int32)
    )
    assert np.exp(values.mean()) == pytest.approx(VOCABULARY)


def test_only_tokens_after_the_middle_are_scored() -> None:
    window = np.arange(CONTEXT, dtype=np.int32)
    assert scored_targets(window).tolist() == list(range(CONTEXT // 2 + 1, CONTEXT))
    assert len(scored_targets(window)) == ROWS


def test_the_file_keeps_tokens_and_log_probabilities(
    baseline: Baseline, windows: np.ndarray
) -> None:
    assert (baseline.windows == windows).all()
    for window, logits in enumerate(_logits(1)):
        kept = baseline.log_probabilities(window, slice(0, ROWS))
        # 16 bits over the range of a row's logits.
        assert np.abs(kept - _log_softmax(logits)).max() < 16 / 65535


def test_the_lowest_probabilities_are_cut_sixteen_nats_below_the_highest(tmp_path: Path) -> None:
    logits = np.zeros((ROWS, VOCABULARY), dtype=np.float32)
    logits[:, 0] = 40
    path = tmp_path / "peaked.kld"
    with baseline_writer(path, np.zeros((1, CONTEXT), dtype=np.int32), VOCABULARY) as writer:
        writer.append(logits)
    kept = Baseline(path).log_probabilities(0, slice(0, ROWS))
    assert kept[:, 0] == pytest.approx(0, abs=1e-3)
    assert kept[:, 1:] == pytest.approx(-16, abs=1e-3)


def test_divergence_matches_its_definition(baseline: Baseline) -> None:
    divergence = Divergence(baseline)
    expected, same = [], []
    for window, (base, logits) in enumerate(zip(_logits(1), _logits(2), strict=True)):
        divergence.add(window, logits)
        p, q = _log_softmax(base), _log_softmax(logits)
        expected.append((np.exp(p) * (p - q)).sum(axis=1))
        same.append(base.argmax(axis=1) == logits.argmax(axis=1))
    assert divergence.kl == pytest.approx(np.concatenate(expected), rel=1e-2)
    assert divergence.kl.mean() == pytest.approx(np.concatenate(expected).mean(), rel=1e-3)
    assert divergence.top1_agreement == np.concatenate(same).mean()


def test_a_model_does_not_diverge_from_itself(baseline: Baseline) -> None:
    divergence = Divergence(baseline)
    nll = []
    for window, logits in enumerate(_logits(1)):
        divergence.add(window, logits)
        nll.append(negative_log_likelihoods(logits, scored_targets(baseline.windows[window])))
    assert abs(divergence.kl.mean()) < 1e-4
    assert divergence.top1_agreement == 1.0
    assert divergence.baseline_nll == pytest.approx(np.concatenate(nll), abs=1e-3)


@pytest.mark.parametrize("damage", [lambda b: b[:-1], lambda b: b"x" + b[1:], lambda b: b[:10]])
def test_a_damaged_file_is_refused(tmp_path: Path, windows: np.ndarray, damage: object) -> None:
    path = tmp_path / "base.kld"
    with baseline_writer(path, windows, VOCABULARY) as writer:
        for logits in _logits(1):
            writer.append(logits)
    assert callable(damage)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(InputError, match=r"base\.kld"):
        Baseline(path)


def test_an_interrupted_writer_leaves_no_file(tmp_path: Path, windows: np.ndarray) -> None:
    path = tmp_path / "base.kld"
    with pytest.raises(KeyboardInterrupt), baseline_writer(path, windows, VOCABULARY):
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


def test_windows_are_whole_and_limited() -> None:
    tokens = list(range(50))
    assert cut_windows(tokens, 16, None).shape == (3, 16)
    assert cut_windows(tokens, 16, 2).tolist() == [list(range(16)), list(range(16, 32))]
    with pytest.raises(InputError, match="too short"):
        cut_windows(tokens, 32, None)
