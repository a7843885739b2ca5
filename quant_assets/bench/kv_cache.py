"""Quality of KV cache types: what they cost at short and at long contexts.

A cache is read by every later token, so its rounding costs more the longer the context is; windows
of 512 tokens hide it. Here both caches run the same weights on the same windows, and tokens are
scored at the end of several contexts of each window, so that a single pass over the longest context
measures all of them. A file of the baseline's log probabilities is not needed.
"""

import datetime
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np
from pydantic import BaseModel, TypeAdapter

from quant_assets.bench.divergence import scored_rows
from quant_assets.bench.jobs import KvCacheMeasurement, KvCacheQualityJob, QualityMeasurement
from quant_assets.bench.subject import Subject, machine_lock
from quant_assets.host.identity import host_id
from quant_assets.processes.session import UNATTENDED, WorkerSession
from quant_assets.processes.supervisor import run_worker
from quant_assets.record_files import UtcTime, readable_record, recency, write_record
from quant_assets.texts.evaluation import WINDOW_TOKENS, EvaluationText

DEFAULT_KV_CACHE_WINDOWS: Final = 4
"""Enough for an interval; each costs a pass over the longest context with both caches."""


class KvCacheResult(BaseModel):
    """What the KV cache types of a variant cost on a text, against an F16 cache, by context."""

    variant: str
    model: str
    artifact_id: str
    cache_type_k: str
    cache_type_v: str
    text: str
    text_sha256: str
    timestamp: UtcTime
    host_id: str | None = None
    contexts: list[QualityMeasurement]


_RESULT = TypeAdapter(KvCacheResult)


def kv_cache_results(results: Path) -> list[KvCacheResult]:
    """All readable results of a results folder, oldest first; a warning names the others."""
    found = map(_known, sorted((results / "kv_cache_quality").glob("*.json")))
    return sorted(
        (result for result in found if result is not None),
        key=lambda result: recency(result.timestamp),
    )


def measure_kv_cache(
    subject: Subject,
    text: EvaluationText,
    results: Path,
    *,
    contexts: Sequence[int],
    windows: int = DEFAULT_KV_CACHE_WINDOWS,
    session: WorkerSession = UNATTENDED,
    locks: Path | None = None,
) -> KvCacheResult:
    """Measure the cache types of a GGUF variant at `contexts` (tokens), or return an earlier result.

    Raises `InputError` for a text that is too short, `ResourceError` where the caches do not fit.
    """
    variant, artifact, settings = subject.variant, subject.artifact, subject.settings
    parts = (
        artifact.artifact_id, variant.cache_type_k, variant.cache_type_v, text.sha256,
        tuple(contexts), windows,
    )  # fmt: skip
    key = hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]
    path = results / "kv_cache_quality" / f"{variant.name}_{key}.json"
    known = _known(path) if path.exists() else None
    if known is not None:
        return known
    with machine_lock(locks):
        measured = run_worker(
            "llama_cpp.kv_cache",
            KvCacheQualityJob(
                model_path=str(artifact.path),
                text_path=str(text.path),
                contexts=tuple(contexts),
                windows=windows,
                threads=settings.effective_threads,
                device=settings.device,
                cache_type_k=variant.cache_type_k,
                cache_type_v=variant.cache_type_v,
            ),
            KvCacheMeasurement,
            session=session,
        )
    result = KvCacheResult(
        variant=variant.name,
        model=subject.model_name,
        artifact_id=artifact.artifact_id,
        cache_type_k=variant.cache_type_k,
        cache_type_v=variant.cache_type_v,
        text=text.name,
        text_sha256=text.sha256,
        timestamp=datetime.datetime.now(datetime.UTC),
        host_id=host_id(),
        contexts=measured.contexts,
    )
    write_record(path, result.model_dump_json(indent=2), "KV cache quality")
    return result


def measurable_contexts(
    contexts: Sequence[int], model_context: int | None, text_tokens: int
) -> list[int]:
    """`contexts` in ascending order, capped at the model's own and at half the text.

    Half, because an interval takes at least two windows.
    """
    limit = min(filter(None, (model_context, text_tokens // 2)), default=0)
    return sorted({min(context, limit) for context in contexts})


def scored_positions(context: int) -> range:
    """The positions of the scored tokens of a context: its last ones.

    As many as a window of 512 tokens scores, and at 512 the same ones.
    """
    return range(context - scored_rows(min(context, WINDOW_TOKENS)), context)


def logit_positions(contexts: Sequence[int]) -> list[int]:
    """The positions whose logits predict the scored tokens of any context, in ascending order."""
    return sorted({at - 1 for context in contexts for at in scored_positions(context)})


def rows_of(context: int, positions: Sequence[int]) -> "np.ndarray[tuple[int], np.dtype[np.intp]]":
    """Where the logits of a context's scored tokens are in the logits of `positions`."""
    return np.searchsorted(positions, [at - 1 for at in scored_positions(context)])


def _known(path: Path) -> KvCacheResult | None:
    return readable_record(path, _RESULT, "KV cache quality", "It is ignored until measured again.")
