"""Worker: perplexity and KL divergence of a GGUF file, by the procedure of llama-perplexity.

Several windows share a batch of 2048 tokens, one sequence per window; logits are requested from the
middle of each window on.
"""

from collections.abc import Iterator
from typing import Any

import llama_cpp
import numpy as np

from quant_assets.bench.divergence import Logits, Tokens, scored_rows
from quant_assets.bench.jobs import PERPLEXITY, QualityJob, QualityMeasurement
from quant_assets.bench.windows import score
from quant_assets.errors import InputError
from quant_assets.processes.protocol import EventChannel, serve
from quant_assets.workers.llama_cpp import native as llama_native

_BATCH_TOKENS = 2048


def _window_logits(
    model: Any, native_context: Any, batch: llama_native.Batch, windows: Tokens, together: int
) -> Iterator[Logits]:
    vocabulary = llama_cpp.llama_model_get_vocab(model)
    n_vocab = llama_cpp.llama_vocab_n_tokens(vocabulary)
    bos = (
        llama_cpp.llama_vocab_bos(vocabulary)
        if llama_cpp.llama_vocab_get_add_bos(vocabulary)
        else None
    )
    context = windows.shape[1]
    first = context // 2
    step = min(context, _BATCH_TOKENS)
    for start in range(0, len(windows), together):
        group = windows[start : start + together]
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(native_context), True)
        parts: list[list[Logits]] = [[] for _ in group]
        for begin in range(0, context, step):
            end = min(begin + step, context)
            batch.clear()
            for sequence, window in enumerate(group):
                for position in range(begin, end):
                    token = int(window[position]) if position or bos is None else bos
                    batch.add(token, position, sequence, logits=position >= first)
            batch.decode(native_context)
            wanted = end - max(begin, first)
            for sequence in range(len(group) if wanted > 0 else 0):
                row = sequence * (end - begin) + max(begin, first) - begin
                pointer = llama_cpp.llama_get_logits_ith(native_context, row)
                values = np.ctypeslib.as_array(pointer, shape=(wanted, n_vocab))
                # llama.cpp reuses this memory for the next batch.
                parts[sequence].append(values.copy() if step < context else values)
        for part in parts:
            rows = part[0] if len(part) == 1 else np.concatenate(part)
            yield rows[: scored_rows(context)]


def measure(job: QualityJob, channel: EventChannel) -> QualityMeasurement:
    """Load the model and score the windows."""
    channel.plan_steps({PERPLEXITY: 100})
    llama_native.NativeLog()
    device = llama_native.resolve_device(job.device)
    together = max(1, _BATCH_TOKENS // job.context)
    with (
        llama_native.loaded_model(job.model_path, device) as model,
        llama_native.context(
            model,
            tokens_per_sequence=job.context,
            sequences=together,
            threads=job.threads,
            batch_tokens=_BATCH_TOKENS,
            cache_type_k=job.cache_type_k,
            cache_type_v=job.cache_type_v,
        ) as native_context,
    ):
        vocabulary = llama_cpp.llama_model_get_vocab(model)
        if llama_cpp.llama_vocab_get_add_eos(vocabulary):
            raise InputError(
                "Perplexity is undefined for this model.",
                "Its tokenizer appends an end token to every text, as encoder models do.",
                "Use a causal language model.",
            )
        batch = llama_native.Batch(_BATCH_TOKENS)
        return score(
            job,
            llama_cpp.llama_vocab_n_tokens(vocabulary),
            lambda text: llama_native.tokenize(model, text),
            lambda windows: _window_logits(model, native_context, batch, windows, together),
            lambda done, total: channel.progress(PERPLEXITY, done, total, "windows"),
        )


if __name__ == "__main__":
    serve(QualityJob, measure)
