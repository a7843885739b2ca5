"""Worker: quality of a KV cache's types at several contexts, against an F16 cache.

One window after the other is computed with both caches, each in a context of its own on the same
weights. Logits are requested only where tokens are scored.
"""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np

from quant_assets.bench.divergence import (
    LogitPairs,
    Logits,
    Tokens,
    cut_windows,
    negative_log_likelihoods,
)
from quant_assets.bench.jobs import (
    PERPLEXITY,
    KvCacheMeasurement,
    KvCacheQualityJob,
    QualityMeasurement,
)
from quant_assets.bench.kv_cache import (
    logit_positions,
    measurable_contexts,
    rows_of,
    scored_positions,
)
from quant_assets.bench.windows import read_text, summarize_windows
from quant_assets.processes.protocol import EventChannel, serve
from quant_assets.workers.llama_cpp import native as llama_native

_BATCH_TOKENS = 2048
_BASELINE_TYPE = "f16"


def _logits(
    native_context: Any,
    batch: llama_native.Batch,
    tokens: Tokens,
    wanted: Sequence[int],
    n_vocab: int,
) -> Logits:
    """The logits at the positions `wanted` of one window."""
    llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(native_context), True)
    outputs = set(wanted)
    rows: Logits = np.empty((len(wanted), n_vocab), dtype=np.float32)
    filled = 0
    for begin in range(0, wanted[-1] + 1, _BATCH_TOKENS):
        end = min(begin + _BATCH_TOKENS, wanted[-1] + 1)
        batch.clear()
        for position in range(begin, end):
            batch.add(int(tokens[position]), position, 0, logits=position in outputs)
        batch.decode(native_context)
        for position in range(begin, end):
            if position in outputs:
                pointer = llama_cpp.llama_get_logits_ith(native_context, position - begin)
                rows[filled] = np.ctypeslib.as_array(pointer, shape=(n_vocab,))
                filled += 1
    return rows


def measure(job: KvCacheQualityJob, channel: EventChannel) -> KvCacheMeasurement:
    """Load the model and score the ends of the contexts with both caches."""
    channel.plan_steps({PERPLEXITY: 100})
    llama_native.NativeLog()
    device = llama_native.resolve_device(job.device)
    started = time.monotonic()
    with llama_native.loaded_model(job.model_path, device) as model:
        vocabulary = llama_cpp.llama_model_get_vocab(model)
        n_vocab = llama_cpp.llama_vocab_n_tokens(vocabulary)
        tokens = llama_native.tokenize(model, read_text(Path(job.text_path)))
        own_context = llama_cpp.llama_model_n_ctx_train(model)
        contexts = measurable_contexts(job.contexts, own_context, len(tokens))
        windows = cut_windows(tokens, contexts[-1], job.windows)
        if llama_cpp.llama_vocab_get_add_bos(vocabulary):
            windows[:, 0] = llama_cpp.llama_vocab_bos(vocabulary)
        wanted = logit_positions(contexts)
        batch = llama_native.Batch(_BATCH_TOKENS)
        pairs = {context: LogitPairs() for context in contexts}
        nll: dict[int, list[Any]] = {context: [] for context in contexts}
        with (
            _cache(model, job, contexts[-1], (_BASELINE_TYPE, _BASELINE_TYPE)) as plain,
            _cache(model, job, contexts[-1], (job.cache_type_k, job.cache_type_v)) as rounded,
        ):
            for number, window in enumerate(windows):
                baseline = _logits(plain, batch, window, wanted, n_vocab)
                channel.progress(PERPLEXITY, 2 * number + 1, 2 * len(windows), "passes")
                logits = _logits(rounded, batch, window, wanted, n_vocab)
                channel.progress(PERPLEXITY, 2 * number + 2, 2 * len(windows), "passes")
                for context in contexts:
                    rows = rows_of(context, wanted)
                    targets = window[np.asarray(scored_positions(context))]
                    pairs[context].add(baseline[rows], logits[rows], targets)
                    nll[context].append(negative_log_likelihoods(logits[rows], targets))
    seconds = time.monotonic() - started
    measured: list[QualityMeasurement] = [
        summarize_windows(np.stack(nll[context]), context, pairs[context], seconds)
        for context in contexts
    ]
    return KvCacheMeasurement(contexts=measured)


def _cache(model: Any, job: KvCacheQualityJob, tokens: int, types: tuple[str, str]) -> Any:
    """A context for one window with a cache of these types (K, V)."""
    return llama_native.context(
        model,
        tokens_per_sequence=tokens,
        sequences=1,
        threads=job.threads,
        batch_tokens=_BATCH_TOKENS,
        cache_type_k=types[0],
        cache_type_v=types[1],
    )


if __name__ == "__main__":
    serve(KvCacheQualityJob, measure)
