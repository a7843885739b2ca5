"""Perplexity, KL divergence and top-1 agreement by definition, through llama-cpp-python's high-level
API with one window per batch: the reference for the quality worker on the same processor.

`python reference_perplexity.py MODEL TEXT CONTEXT` prints {"baseline", "kv", "kl", "top1"}: the
perplexities with an f16 and with a q4_0 cache, and the divergence of the second from the first.
"""

import json
import sys
from pathlib import Path

import llama_cpp
import numpy as np


def log_probabilities(
    model: Path, text: str, context: int, cache_type: int
) -> tuple[np.ndarray, np.ndarray]:
    """(log-probabilities, targets) of the second half of every window, as float64."""
    llm = llama_cpp.Llama(
        str(model), n_ctx=context, n_batch=context, n_ubatch=context, logits_all=True,
        type_k=cache_type, type_v=cache_type, flash_attn=True, n_threads=1, verbose=False,
    )  # fmt: skip
    tokens = llm.tokenize(text.encode(), add_bos=True)
    rows, targets = [], []
    for start in range(0, len(tokens) - context + 1, context):
        window = tokens[start : start + context]
        llm.reset()
        llm.eval(window)
        scored = slice(context // 2, context - 1)
        rows.append(np.array(llm.scores[scored], dtype=np.float64))
        targets += window[context // 2 + 1 :]
    logits = np.concatenate(rows)
    logits -= logits.max(axis=1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(axis=1, keepdims=True)), np.array(targets)


def main() -> None:
    """Measure both cache types and print the comparison."""
    model, text = Path(sys.argv[1]), Path(sys.argv[2]).read_text(encoding="utf-8")
    context = int(sys.argv[3])
    base, targets = log_probabilities(model, text, context, llama_cpp.GGML_TYPE_F16)
    kv, _ = log_probabilities(model, text, context, llama_cpp.GGML_TYPE_Q4_0)
    chosen = np.arange(len(targets))
    print(
        json.dumps(
            {
                "baseline": float(np.exp(-base[chosen, targets].mean())),
                "kv": float(np.exp(-kv[chosen, targets].mean())),
                "kl": float((np.exp(base) * (base - kv)).sum(axis=1).mean()),
                "top1": float((base.argmax(axis=1) == kv.argmax(axis=1)).mean()),
            }
        )
    )


if __name__ == "__main__":
    main()
