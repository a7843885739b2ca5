"""The pass rate of a variant: its answers to all prompts, checked, and kept as a file."""

import datetime
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

from pydantic import BaseModel, TypeAdapter, computed_field

from quant_assets.bench.jobs import ChatJob, ChatReplies
from quant_assets.bench.obedience.prompts import ObediencePrompt
from quant_assets.bench.statistics import RateInterval, wilson_interval
from quant_assets.bench.subject import Subject, machine_lock
from quant_assets.processes.session import UNATTENDED, WorkerSession
from quant_assets.processes.supervisor import run_worker
from quant_assets.record_files import UtcTime, readable_record, write_record

# Twice what any prompt needs; a longer answer disobeys anyway.
MAX_TOKENS = 80
_FOLDER = "obedience"


class Transcript(BaseModel):
    """A prompt, its answer, and why the answer failed (null: it passed)."""

    id: str
    category: str
    prompt: str
    answer: str
    failure: str | None


class ObedienceResult(BaseModel):
    """Obedience of a variant; rates are fractions of prompts whose answers passed.

    The intervals are 95% Wilson intervals, derived from the transcripts.
    """

    variant: str
    model: str
    artifact_id: str
    timestamp: UtcTime
    pass_rate: float
    pass_rate_by_category: dict[str, float]
    transcripts: list[Transcript]

    @computed_field  # type: ignore[prop-decorator]
    @property
    def pass_rate_interval(self) -> RateInterval:
        """The interval of `pass_rate`."""
        return _interval(self.transcripts)

    @computed_field  # type: ignore[prop-decorator]
    @property
    def pass_rate_interval_by_category(self) -> dict[str, RateInterval]:
        """The intervals of `pass_rate_by_category`."""
        return {
            category: _interval([item for item in self.transcripts if item.category == category])
            for category in self.pass_rate_by_category
        }


def _interval(transcripts: Sequence[Transcript]) -> RateInterval:
    return wilson_interval(sum(item.failure is None for item in transcripts), len(transcripts))


_RESULT = TypeAdapter(ObedienceResult)


def check_answers(
    prompts: Sequence[ObediencePrompt],
    answers: Sequence[str],
    *,
    variant: str,
    model: str,
    artifact_id: str,
    timestamp: datetime.datetime | None = None,
) -> ObedienceResult:
    """Check every answer and compute the pass rates; without `timestamp`, they were given now."""
    transcripts = [
        Transcript(
            id=prompt.id,
            category=prompt.category,
            prompt=prompt.prompt,
            answer=answer,
            failure=prompt.failure(answer),
        )
        for prompt, answer in zip(prompts, answers, strict=True)
    ]
    by_category: dict[str, list[bool]] = {}
    for transcript in transcripts:
        by_category.setdefault(transcript.category, []).append(transcript.failure is None)
    return ObedienceResult(
        variant=variant,
        model=model,
        artifact_id=artifact_id,
        timestamp=timestamp or datetime.datetime.now(datetime.UTC),
        pass_rate=sum(item.failure is None for item in transcripts) / len(transcripts),
        pass_rate_by_category={
            category: sum(passed) / len(passed) for category, passed in by_category.items()
        },
        transcripts=transcripts,
    )


def measure_obedience(
    subject: Subject,
    prompts: Sequence[ObediencePrompt],
    results: Path,
    *,
    session: WorkerSession = UNATTENDED,
    locks: Path | None = None,
) -> ObedienceResult:
    """Have a variant answer all prompts, or return the result of an earlier run.

    Results with their transcripts are kept under `results/obedience/`, keyed by artifact, KV cache
    types and the prompts' content. The answers of an earlier run are checked again, since a check
    may have been corrected meanwhile. A damaged result is measured again and replaced.
    """
    variant, artifact = subject.variant, subject.artifact
    identity = json.dumps(
        [artifact.artifact_id, variant.cache_type_k, variant.cache_type_v, MAX_TOKENS]
        + [prompt.model_dump(mode="json") for prompt in prompts],
        sort_keys=True,
    )
    key = hashlib.sha256(identity.encode()).hexdigest()[:16]
    path = results / _FOLDER / f"{variant.name}_{key}.json"
    known = _known(path) if path.exists() else None
    if known is not None and [item.id for item in known.transcripts] == [
        prompt.id for prompt in prompts
    ]:
        checked = check_answers(
            prompts,
            [item.answer for item in known.transcripts],
            variant=variant.name,
            model=subject.model_name,
            artifact_id=artifact.artifact_id,
            timestamp=known.timestamp,
        )
        if checked != known:
            write_record(path, checked.model_dump_json(indent=2), "obedience result")
        return checked
    worker, environment = subject.worker("chat")
    job = ChatJob(
        model_path=str(artifact.path),
        format=variant.format,
        prompts=[prompt.prompt for prompt in prompts],
        max_tokens=MAX_TOKENS,
        threads=subject.settings.effective_threads,
        device=subject.settings.device,
        cache_type_k=variant.cache_type_k,
        cache_type_v=variant.cache_type_v,
    )
    with machine_lock(locks):
        answers = run_worker(
            worker,
            job,
            ChatReplies,
            environment=environment,
            session=session,
        )
    result = check_answers(
        prompts,
        answers.replies,
        variant=variant.name,
        model=subject.model_name,
        artifact_id=artifact.artifact_id,
    )
    write_record(path, result.model_dump_json(indent=2), "obedience result")
    return result


def obedience_results(results: Path) -> list[ObedienceResult]:
    """All readable results under `results`; a warning names the others."""
    found = map(_known, sorted((results / _FOLDER).glob("*.json")))
    return [result for result in found if result is not None]


def _known(path: Path) -> ObedienceResult | None:
    return readable_record(path, _RESULT, "obedience result", "It is ignored until measured again.")
