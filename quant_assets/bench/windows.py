"""The scoring loop of a quality worker: the same for every backend."""

import time
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from quant_assets.bench.divergence import (
    Baseline,
    Divergence,
    Logits,
    TokenDivergence,
    Tokens,
    Values,
    baseline_writer,
    cut_windows,
    mean_and_standard_error,
    negative_log_likelihoods,
    scored_targets,
)
from quant_assets.bench.jobs import QualityJob, QualityMeasurement, WindowSums
from quant_assets.errors import InputError
from quant_assets.window_intervals import largest_values

Progress = Callable[[int, int], None]
Tokenize = Callable[[str], list[int]]
# Takes windows, yields the logits of the scored rows of each, in order.
ScoreWindows = Callable[[Tokens], Iterable[Logits]]


def score(
    job: QualityJob,
    n_vocab: int,
    tokenize: Tokenize,
    score_windows: ScoreWindows,
    progress: Progress,
) -> QualityMeasurement:
    """Score a model's windows against their tokens and, if given, against a baseline.

    Raises `InputError` for a baseline of another vocabulary or context, or a text that is too short
    or not UTF-8.
    """
    started = time.monotonic()
    baseline = Baseline(Path(job.baseline_path)) if job.baseline_path else None
    if baseline is not None:
        _check(baseline, n_vocab, job)
        windows = baseline.windows
    else:
        assert job.text_path is not None, "a job without a baseline names a text"
        windows = cut_windows(tokenize(read_text(Path(job.text_path))), job.context, job.windows)
    divergence = Divergence(baseline) if baseline is not None else None
    nll = []
    with ExitStack() as stack:
        writer = None
        if job.save_baseline_path:
            writer = stack.enter_context(
                baseline_writer(Path(job.save_baseline_path), windows, n_vocab)
            )
        for number, logits in enumerate(score_windows(windows)):
            nll.append(negative_log_likelihoods(logits, scored_targets(windows[number])))
            if divergence is not None:
                divergence.add(number, logits)
            if writer is not None:
                writer.append(logits)
            progress(number + 1, len(windows))
    return summarize_windows(
        np.stack(nll), windows.shape[1], divergence, time.monotonic() - started
    )


def read_text(path: Path) -> str:
    """The text of a file as llama.cpp's tools read it; raises `InputError` where it cannot be read."""
    try:
        return path.read_text(encoding="utf-8").removesuffix("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"The text {path} cannot be read.", f"{error}.", "Name a text file in UTF-8."
        ) from error


def _check(baseline: Baseline, n_vocab: int, job: QualityJob) -> None:
    if (baseline.n_vocab, baseline.context) != (n_vocab, job.context):
        raise InputError(
            "The baseline does not belong to this model.",
            f"It has {baseline.n_vocab} tokens and a context of {baseline.context}; the model has "
            f"{n_vocab}, the job asks for {job.context}.",
            "Compare models of one vocabulary, with a baseline of the same context.",
        )


def summarize_windows(
    window_nll: Values, context: int, divergence: TokenDivergence | None, seconds: float
) -> QualityMeasurement:
    """Summarize `window_nll`, the negative log-likelihoods of windows x scored tokens, in nats."""
    count = len(window_nll)
    nll = window_nll.ravel()
    mean, error = mean_and_standard_error(nll)
    perplexity = float(np.exp(mean))
    nll_sums = window_nll.sum(axis=1).tolist()
    measurement = QualityMeasurement(
        perplexity=perplexity,
        perplexity_standard_error=perplexity * error,
        scored_tokens=len(nll),
        windows=count,
        context=context,
        window_sums=WindowSums(nll=nll_sums),
        seconds=seconds,
    )
    if divergence is None:
        return measurement
    kl, kl_error = mean_and_standard_error(divergence.kl)
    window_kl = divergence.kl.reshape(count, -1)
    p99 = float(np.percentile(window_kl, 99))
    baseline_nll = divergence.baseline_nll
    baseline_perplexity = float(np.exp(baseline_nll.mean()))
    ratio = perplexity / baseline_perplexity
    # Both models score the same tokens, so their errors largely cancel. llama.cpp
    # (tools/perplexity/perplexity.cpp) writes the same variance as var(Q) + var(base) - 2 cov.
    _, log_ratio_error = mean_and_standard_error(nll - baseline_nll)
    return measurement.model_copy(
        update={
            "baseline_perplexity": baseline_perplexity,
            "perplexity_ratio": ratio,
            "perplexity_ratio_standard_error": ratio * log_ratio_error,
            "kl_divergence": kl,
            "kl_divergence_standard_error": kl_error,
            "kl_divergence_median": float(np.median(divergence.kl)),
            "kl_divergence_p99": p99,
            "kl_divergence_max": float(divergence.kl.max()),
            "top1_agreement": divergence.top1_agreement,
            "window_sums": WindowSums(
                nll=nll_sums,
                baseline_nll=baseline_nll.reshape(count, -1).sum(axis=1).tolist(),
                kl_divergence=window_kl.sum(axis=1).tolist(),
                tokens_over_p99=(window_kl > p99).sum(axis=1).tolist(),
            ),
            "kl_divergence_largest": largest_values(window_kl.ravel(), 99),
        }
    )
