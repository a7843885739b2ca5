"""Worker: perplexity and KL divergence of a checkpoint on torch, on llama.cpp's windows."""

from collections.abc import Iterator
from typing import Any

import torch

from quant_assets.bench.divergence import Logits, Tokens
from quant_assets.bench.jobs import QualityJob, QualityMeasurement
from quant_assets.bench.windows import score
from quant_assets.workers.protocol import EventChannel, serve
from quant_assets.workers.torch_models import (
    load_model,
    load_tokenizer,
    prepare_torch,
    resolve_device,
)


def _window_logits(model: Any, windows: Tokens, device: str, bos: int | None) -> Iterator[Logits]:
    """Logits of the scored rows of each window; `bos` takes the place of its first token."""
    context = windows.shape[1]
    for window in windows:
        tokens = torch.tensor(window, dtype=torch.long, device=device)
        if bos is not None:
            tokens[0] = bos
        output = model(
            input_ids=tokens[None], use_cache=False, logits_to_keep=context - context // 2
        )
        logits: Logits = output.logits[0, :-1].float().cpu().numpy()
        yield logits


def _added_bos(tokenizer: Any) -> int | None:
    """The token that the tokenizer puts before a text by itself, if it is BOS."""
    tokens = tokenizer("a")["input_ids"]
    return tokenizer.bos_token_id if tokens and tokens[0] == tokenizer.bos_token_id else None


def measure(job: QualityJob, channel: EventChannel) -> QualityMeasurement:
    """Load the model and score the windows."""
    prepare_torch(job.threads)
    device = resolve_device(job.device)
    model = load_model(job.model_path, job.format, device)
    return score_model(job, model, load_tokenizer(job.model_path), device, channel)


def score_model(
    job: QualityJob, model: Any, tokenizer: Any, device: str, channel: EventChannel
) -> QualityMeasurement:
    """Score the windows with a model that is loaded already."""
    return score(
        job,
        int(model.config.vocab_size),
        lambda text: list(tokenizer(text)["input_ids"]),
        lambda windows: _window_logits(model, windows, device, _added_bos(tokenizer)),
        lambda done, total: channel.progress("perplexity", done, total, "windows"),
    )


if __name__ == "__main__":
    serve(QualityJob, measure)
