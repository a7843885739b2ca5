"""Quality of a variant: perplexity, and divergence from the F16 baseline on the same windows."""

import datetime
import hashlib
import json
import logging
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Final, NamedTuple, TypeVar

from pydantic import BaseModel, TypeAdapter

from quant_assets.artifacts.quality_gate import GATE_PERPLEXITY_RATIO, exceeds_gate
from quant_assets.bench.artifact_finder import LocatedArtifact
from quant_assets.bench.divergence import Baseline
from quant_assets.bench.jobs import QualityJob, QualityMeasurement
from quant_assets.bench.obedience.measurement import ObedienceResult
from quant_assets.bench.statistics import Ratio
from quant_assets.bench.subject import Subject, machine_lock
from quant_assets.bench.variants import BASELINE_VARIANT, Variant
from quant_assets.errors import InputError
from quant_assets.host.identity import host_id
from quant_assets.processes.session import UNATTENDED, WorkerSession
from quant_assets.processes.supervisor import run_worker
from quant_assets.record_files import UtcTime, readable_record, recency, write_record
from quant_assets.texts.evaluation import WINDOW_TOKENS, EvaluationText
from quant_assets.window_intervals import ratio_interval

DEFAULT_WINDOWS = 30
MAX_BASELINE_BYTES: Final = 8_000_000_000
"""Two bytes per token of the vocabulary and scored token: 2 GB for 30 windows and 128,000 tokens."""

_log = logging.getLogger(__name__)


class QualityResult(BaseModel):
    """The quality of a variant on a text, measured against a baseline artifact.

    `host_id`: the machine that took `measurement.seconds`; null in older results.
    """

    variant: str
    model: str
    artifact_id: str
    baseline_artifact_id: str
    text: str
    text_sha256: str
    timestamp: UtcTime
    host_id: str | None = None
    measurement: QualityMeasurement


_RESULT = TypeAdapter(QualityResult)
_Result = TypeVar("_Result", QualityResult, ObedienceResult)


class QualityStore:
    """Quality results and baseline files, keyed by what they were measured on.

    A damaged result or baseline is measured again and replaced.
    """

    def __init__(self, results: Path, cache: Path) -> None:
        self.folder = results / "quality"
        self.baselines = cache / "baselines"

    def path(self, variant: Variant, key: str) -> Path:
        """The file of a variant's result."""
        return self.folder / f"{variant.name}_{key}.json"

    def find(self, variant: Variant, key: str) -> QualityResult | None:
        """An earlier result, or None."""
        path = self.path(variant, key)
        return _known(path) if path.exists() else None

    def save(self, variant: Variant, key: str, result: QualityResult) -> None:
        """Write a result; raises `ResourceError` when it cannot be written."""
        write_record(self.path(variant, key), result.model_dump_json(indent=2), "quality result")

    def all(self) -> list[QualityResult]:
        """All readable results; a warning names the others."""
        return quality_results(self.folder.parent)

    def has_valid_baseline(self, path: Path) -> bool:
        """Whether a valid baseline file exists; a damaged one is deleted."""
        if not path.exists():
            return False
        try:
            Baseline(path)
        except InputError as error:
            _log.warning("A damaged baseline is recomputed. %s", error)
            path.unlink()
            return False
        return True

    def make_room(self, used: Path, limit_bytes: int = MAX_BASELINE_BYTES) -> None:
        """Mark a baseline as used; delete those used longest ago, until all fit in `limit_bytes`.

        The baseline `used` stays, however large it is.
        """
        used.touch()
        kept_bytes = used.stat().st_size
        others = [path for path in self.baselines.glob("*.kld") if path != used]
        for path in sorted(others, key=lambda path: path.stat().st_mtime, reverse=True):
            kept_bytes += path.stat().st_size
            if kept_bytes > limit_bytes:
                path.unlink()


def quality_results(results: Path) -> list[QualityResult]:
    """All readable quality results of a results folder; a warning names the others."""
    found = map(_known, sorted((results / "quality").glob("*.json")))
    return [result for result in found if result is not None]


class TextIdentity(NamedTuple):
    """What a perplexity was measured on; only measurements with equal identities compare."""

    sha256: str
    windows: int
    context: int


def text_identity(result: QualityResult) -> TextIdentity:
    """The text, the number of its windows and their length that `result` was measured on."""
    return TextIdentity(result.text_sha256, result.measurement.windows, result.measurement.context)


def on_one_text(
    results: Iterable[QualityResult], current: Collection[tuple[str, str]]
) -> dict[tuple[str, str], QualityResult]:
    """The newest result of each (variant, artifact id) in `current`, all of a model on one text.

    Per model that is the text on which most variants besides the baseline were measured, of equals
    the one measured last; `int_quality_texts` chooses likewise. Variants that were measured on other
    texts alone are absent.
    """
    by_text: dict[str, dict[TextIdentity, list[QualityResult]]] = {}
    for result in results:
        if (result.variant, result.artifact_id) in current:
            texts = by_text.setdefault(result.model, {})
            texts.setdefault(text_identity(result), []).append(result)
    chosen: dict[tuple[str, str], QualityResult] = {}
    for texts in by_text.values():
        chosen |= newest_by_artifact(max(texts.values(), key=_coverage))
    return chosen


def _coverage(
    results: Iterable[QualityResult],
) -> tuple[int, tuple[bool, datetime.datetime]]:
    known = list(results)
    variants = {result.variant for result in known} - {BASELINE_VARIANT}
    return len(variants), max(recency(result.timestamp) for result in known)


def compare(result: QualityResult, other: QualityResult) -> Ratio | None:
    """The perplexity of `result` over that of `other`, with its 95% interval, paired by window.

    None where the two were not measured on the same windows of one text, or where one of the
    records is too old to have the losses of its windows.
    """
    nll, other_nll = result.measurement.window_nll, other.measurement.window_nll
    if nll is None or other_nll is None or text_identity(result) != text_identity(other):
        return None
    interval = ratio_interval(nll, other_nll)
    if interval is None:
        return None
    return Ratio(result.measurement.perplexity / other.measurement.perplexity, *interval)


def newest_by_artifact(results: Iterable[_Result]) -> dict[tuple[str, str], _Result]:
    """The newest result of each variant and artifact id, by `recency`."""
    ordered = sorted(results, key=lambda result: recency(result.timestamp))
    return {(result.variant, result.artifact_id): result for result in ordered}


def _known(path: Path) -> QualityResult | None:
    return readable_record(path, _RESULT, "quality result", "It is ignored until measured again.")


def _key(*parts: object) -> str:
    return hashlib.sha256(json.dumps([str(part) for part in parts]).encode()).hexdigest()[:16]


def measure_quality(
    subject: Subject,
    baseline: LocatedArtifact,
    text: EvaluationText,
    store: QualityStore,
    *,
    windows: int | None = DEFAULT_WINDOWS,
    session: WorkerSession = UNATTENDED,
    locks: Path | None = None,
) -> QualityResult:
    """Measure a variant against the F16 baseline, or return the result of an earlier run.

    The baseline's log probabilities are computed once per text and kept in the cache, up to
    `MAX_BASELINE_BYTES` for all baselines; GPTQ and AWQ artifacts are scored on the same tokens,
    which the baseline file holds.
    """
    variant, artifact, settings = subject.variant, subject.artifact, subject.settings
    key = _key(
        artifact.artifact_id, baseline.artifact_id, variant.cache_type_k, variant.cache_type_v,
        text.sha256, WINDOW_TOKENS, windows,
    )  # fmt: skip
    known = store.find(variant, key)
    if known is not None:
        return known
    baseline_file = store.baselines / (
        f"{_key(baseline.artifact_id, text.sha256, WINDOW_TOKENS, windows)}.kld"
    )
    with machine_lock(locks):
        if not store.has_valid_baseline(baseline_file):
            run_worker(
                "llama_cpp.quality",
                QualityJob(
                    model_path=str(baseline.path),
                    format="gguf",
                    text_path=str(text.path),
                    save_baseline_path=str(baseline_file),
                    context=WINDOW_TOKENS,
                    windows=windows,
                    threads=settings.effective_threads,
                    device=settings.device,
                ),
                QualityMeasurement,
                session=session,
            )
        store.make_room(baseline_file)
        worker, environment = subject.worker("quality")
        measurement = run_worker(
            worker,
            QualityJob(
                model_path=str(artifact.path),
                format=variant.format,
                baseline_path=str(baseline_file),
                context=WINDOW_TOKENS,
                threads=settings.effective_threads,
                device=settings.device,
                cache_type_k=variant.cache_type_k,
                cache_type_v=variant.cache_type_v,
            ),
            QualityMeasurement,
            environment=environment,
            session=session,
        )
    result = QualityResult(
        variant=variant.name,
        model=subject.model_name,
        artifact_id=artifact.artifact_id,
        baseline_artifact_id=baseline.artifact_id,
        text=text.name,
        text_sha256=text.sha256,
        timestamp=datetime.datetime.now(datetime.UTC),
        host_id=host_id(),
        measurement=measurement,
    )
    store.save(variant, key, result)
    return result


def gate_breach(result: QualityResult, level: str, n_parameters: int) -> str | None:
    """Why a Q4_K_M of a large enough model certainly fails the quality gate; None otherwise."""
    ratio = result.measurement.perplexity_ratio
    interval = result.measurement.perplexity_ratio_interval
    if level != "Q4_K_M" or ratio is None or not exceeds_gate(ratio, n_parameters, interval):
        return None
    reach = "" if interval is None else f" ({interval.low:.3f} to {interval.high:.3f})"
    return (
        f"the perplexity of {result.variant} is {ratio:.3f} times{reach} that of F16, over "
        f"{GATE_PERPLEXITY_RATIO}"
    )
