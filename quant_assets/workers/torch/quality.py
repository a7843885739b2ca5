"""Worker: perplexity and KL divergence of a checkpoint on torch, over llama.cpp's windows."""

from collections.abc import Callable, Iterator
from typing import Any

import torch

from quant_assets.bench.divergence import Logits, Tokens
from quant_assets.bench.jobs import PERPLEXITY, QualityJob, QualityMeasurement
from quant_assets.bench.windows import Progress, score
from quant_assets.processes.protocol import EventChannel, serve
from quant_assets.workers.torch.models import (
    load_model,
    load_tokenizer,
    prepare_torch,
    report_vram,
    resolve_device,
)

LogitsOf = Callable[[torch.Tensor, int], Iterator[torch.Tensor]]
"""(windows of tokens, n) -> logits of the last n tokens of each window, in order."""


def logits_of_loaded(model: Any, device: str) -> LogitsOf:
    """Logits of a model that is in memory."""

    def logits_of(windows: torch.Tensor, keep: int) -> Iterator[torch.Tensor]:
        for window in windows:
            output = model(input_ids=window[None].to(device), use_cache=False, logits_to_keep=keep)
            yield output.logits[0]

    return logits_of


def _window_logits(logits_of: LogitsOf, windows: Tokens, bos: int | None) -> Iterator[Logits]:
    """Logits of the scored rows of each window; `bos` replaces the first token."""
    context = windows.shape[1]
    tokens = torch.tensor(windows, dtype=torch.long)
    if bos is not None:
        tokens[:, 0] = bos
    for found in logits_of(tokens, context - context // 2):
        logits: Logits = found[:-1].float().cpu().numpy()
        yield logits


def _added_bos(tokenizer: Any) -> int | None:
    """The BOS token, if the tokenizer prepends it by default."""
    tokens = tokenizer("a")["input_ids"]
    return tokenizer.bos_token_id if tokens and tokens[0] == tokenizer.bos_token_id else None


def measure(job: QualityJob, channel: EventChannel) -> QualityMeasurement:
    """Load the model and score the windows."""
    channel.plan_steps({PERPLEXITY: 100})
    prepare_torch(job.threads)
    device = resolve_device(job.device)
    report_vram(channel, device)
    model = load_model(job.model_path, job.format, device)
    return score_logits(
        job,
        int(model.config.vocab_size),
        logits_of_loaded(model, device),
        load_tokenizer(job.model_path),
        lambda done, total: channel.progress(PERPLEXITY, done, total, "windows"),
    )


def score_logits(
    job: QualityJob, n_vocab: int, logits_of: LogitsOf, tokenizer: Any, report: Progress
) -> QualityMeasurement:
    """Score the windows from logits of any origin; `report` gets (windows done, of all)."""
    return score(
        job,
        n_vocab,
        lambda text: list(tokenizer(text)["input_ids"]),
        lambda windows: _window_logits(logits_of, windows, _added_bos(tokenizer)),
        report,
    )


if __name__ == "__main__":
    serve(QualityJob, measure)
