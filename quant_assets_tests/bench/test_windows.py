from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from quant_assets.bench.jobs import QualityJob, QualityMeasurement
from quant_assets.bench.windows import score

VOCABULARY, CONTEXT, WINDOWS = 64, 16, 6
ROWS = CONTEXT - 1 - CONTEXT // 2


def _logits(seed: int) -> np.ndarray:
    values = np.random.default_rng(seed).normal(size=(WINDOWS, ROWS, VOCABULARY)) * 2
    return values.astype(np.float32)


def _score(tmp_path: Path, logits: np.ndarray, **paths: str) -> QualityMeasurement:
    text = tmp_path / "text"
    text.write_text("any")
    job = QualityJob(
        model_path="m", format="gguf", text_path=str(text), context=CONTEXT, threads=1, **paths
    )
    tokens = np.random.default_rng(0).integers(0, VOCABULARY, CONTEXT * WINDOWS).tolist()
    return score(job, VOCABULARY, lambda _: tokens, lambda _: iter(logits), lambda *_: None)


def _nll(logits: np.ndarray) -> np.ndarray:
    tokens = np.random.default_rng(0).integers(0, VOCABULARY, (WINDOWS, CONTEXT))
    targets = tokens[:, CONTEXT // 2 + 1 :]
    wide = logits.astype(np.float64)
    log_p = wide - np.log(np.exp(wide).sum(axis=-1, keepdims=True))
    return -np.take_along_axis(log_p, targets[..., None], axis=-1).ravel()


def test_the_ratios_standard_error_is_that_of_paired_tokens(tmp_path: Path) -> None:
    base = _logits(1)
    # A slightly changed model, as quantization makes one.
    changed = base + np.float32(0.1) * _logits(2)
    path = str(tmp_path / "base.kld")
    alone = _score(tmp_path, base, save_baseline_path=path)
    compared = _score(tmp_path, changed, baseline_path=path)

    difference = _nll(changed) - _nll(base)
    ratio = np.exp(difference.mean())
    assert compared.perplexity_ratio == pytest.approx(ratio, rel=1e-4)
    expected = ratio * difference.std(ddof=1) / np.sqrt(len(difference))
    assert compared.perplexity_ratio_standard_error == pytest.approx(expected, rel=1e-3)
    # llama.cpp's form: var(Q) + var(base) - 2 cov.
    covariance = np.cov(_nll(changed), _nll(base)) / len(difference)
    variance = covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1]
    assert compared.perplexity_ratio_standard_error == pytest.approx(
        ratio * np.sqrt(variance), rel=1e-3
    )
    unpaired = compared.perplexity_standard_error / compared.perplexity
    assert compared.perplexity_ratio_standard_error < unpaired / 3
    assert alone.perplexity_ratio_standard_error is None


def test_the_sums_of_windows_give_the_intervals(tmp_path: Path) -> None:
    base = _logits(1)
    changed = base + np.float32(0.1) * _logits(2)
    path = str(tmp_path / "base.kld")
    _score(tmp_path, base, save_baseline_path=path)
    measured = QualityMeasurement.model_validate_json(
        _score(tmp_path, changed, baseline_path=path).model_dump_json()
    )
    difference = (_nll(changed) - _nll(base)).reshape(WINDOWS, ROWS).mean(axis=1)
    low, high = stats.t.interval(
        0.95, WINDOWS - 1, loc=difference.mean(), scale=stats.sem(difference)
    )
    ratio, divergence = measured.perplexity_ratio_interval, measured.kl_divergence_interval
    assert ratio == pytest.approx((np.exp(low), np.exp(high)), rel=1e-4)
    assert measured.window_sums is not None and measured.window_sums.kl_divergence is not None
    assert sum(measured.window_sums.kl_divergence) / (WINDOWS * ROWS) == pytest.approx(
        measured.kl_divergence
    )
    assert divergence is not None and measured.kl_divergence is not None
    assert 0 < divergence.low < measured.kl_divergence < divergence.high
    p99 = measured.kl_divergence_p99_interval
    assert p99 is not None and measured.kl_divergence_p99 is not None
    assert p99.low <= measured.kl_divergence_p99 <= p99.high == measured.kl_divergence_max


def test_a_record_of_an_older_form_has_no_standard_error_of_the_ratio() -> None:
    old = '{"perplexity": 10, "perplexity_standard_error": 0.1, "scored_tokens": 255, '
    old += '"windows": 1, "context": 512, "baseline_perplexity": 9.9, '
    old += '"perplexity_ratio": 1.01, "seconds": 1}'
    read = QualityMeasurement.model_validate_json(old)
    assert read.perplexity_ratio == 1.01 and read.perplexity_ratio_standard_error is None
    assert read.perplexity_ratio_interval is None and read.kl_divergence_interval is None
    assert read.kl_divergence_p99_interval is None and read.window_nll is None
