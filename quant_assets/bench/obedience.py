"""Obedience: does a model do what it is told? Prompts with checkers, and the pass rate.

A checker looks at the answer alone and says why it fails. Surrounding white space never counts.
"""

import datetime
import hashlib
import json
import logging
import re
from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from jsonschema import Draft202012Validator
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from quant_assets.bench.jobs import ChatJob, ChatReplies
from quant_assets.bench.subject import Subject, machine_lock
from quant_assets.errors import InputError
from quant_assets.processes.session import UNATTENDED, WorkerSession
from quant_assets.processes.supervisor import run_worker
from quant_assets.record_files import UtcTime, read_record, write_record

# Every prompt can be answered in half of it; what goes on longer disobeys anyway.
MAX_TOKENS = 80
_FOLDER = "obedience"
_log = logging.getLogger(__name__)

# The most frequent function words, those shared between these languages left out.
_FUNCTION_WORDS = {
    "en": {"the", "and", "is", "of", "to", "that", "it", "with", "are", "this", "for", "you"},
    "es": {"el", "los", "las", "y", "es", "que", "una", "con", "por", "para", "muy", "está"},
    "fr": {"le", "les", "et", "est", "une", "dans", "pour", "avec", "sur", "qui", "nous", "il"},
    "de": {"der", "das", "und", "ist", "ein", "eine", "nicht", "mit", "für", "auf", "ich", "sie"},
    "it": {"il", "che", "è", "di", "un", "una", "con", "sono", "della", "gli", "molto", "nel"},
    "pt": {"o", "os", "e", "é", "que", "uma", "com", "não", "para", "muito", "são", "em"},
}
_LETTER = re.compile(r"[^\W\d_]+")
_SENTENCE_END = re.compile(r"[.!?]+(?=\s|$)")
_FENCE = re.compile(r"^```(?:json)?\s*\n(.*)\n```$", re.DOTALL)


class _Check(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    def failure(self, answer: str) -> str | None:
        """Why the answer fails, or None."""
        return self._failure(answer.strip())

    @abstractmethod
    def _failure(self, answer: str) -> str | None: ...


class ExactCheck(_Check):
    """The answer is one of these texts and nothing else."""

    kind: Literal["exact"]
    accepted: list[str] = Field(min_length=1)
    ignore_case: bool = False

    def _failure(self, answer: str) -> str | None:
        fold = str.casefold if self.ignore_case else str
        if fold(answer) in {fold(text) for text in self.accepted}:
            return None
        return f"it is not exactly {' or '.join(map(repr, self.accepted))}"


class PatternCheck(_Check):
    """The whole answer matches a regular expression."""

    kind: Literal["pattern"]
    pattern: str

    def _failure(self, answer: str) -> str | None:
        matched = re.fullmatch(self.pattern, answer, re.DOTALL)
        return None if matched else f"it does not match {self.pattern}"


class LengthCheck(_Check):
    """The count of words, sentences, lines or characters lies within bounds."""

    kind: Literal["length"]
    unit: Literal["words", "sentences", "lines", "characters"]
    minimum: int = 1
    maximum: int

    def _failure(self, answer: str) -> str | None:
        count = {
            "words": len(answer.split()),
            "sentences": len(_SENTENCE_END.findall(answer)),
            "lines": sum(1 for line in answer.splitlines() if line.strip()),
            "characters": len(answer),
        }[self.unit]
        if self.minimum <= count <= self.maximum:
            return None
        return f"it has {count} {self.unit}, not {self.minimum} to {self.maximum}"


class WordsCheck(_Check):
    """Some words must be there and others must not; case does not count."""

    kind: Literal["words"]
    required: list[str] = []
    forbidden: list[str] = []
    minimum_words: int = 1

    def _failure(self, answer: str) -> str | None:
        words = {word.casefold() for word in _LETTER.findall(answer)}
        missing = [word for word in self.required if word.casefold() not in words]
        present = [word for word in self.forbidden if word.casefold() in words]
        if missing:
            return f"it lacks {', '.join(missing)}"
        if present:
            return f"it has {', '.join(present)}"
        if len(answer.split()) < self.minimum_words:
            return f"it has fewer than {self.minimum_words} words"
        return None


class LanguageCheck(_Check):
    """The answer is in a language, judged by its function words."""

    kind: Literal["language"]
    language: Literal["en", "es", "fr", "de", "it", "pt"]
    minimum_words: int = 4

    def _failure(self, answer: str) -> str | None:
        words = [word.casefold() for word in _LETTER.findall(answer)]
        if len(words) < self.minimum_words:
            return f"it has fewer than {self.minimum_words} words"
        hits = {
            language: sum(word in known for word in words)
            for language, known in _FUNCTION_WORDS.items()
        }
        best = max(hits.values())
        if best > 0 and hits[self.language] == best:
            return None
        return f"its words are not {self.language}"


class JsonCheck(_Check):
    """The answer is JSON, and nothing else, that a schema accepts; a code fence is allowed."""

    kind: Literal["json"]
    json_schema: dict[str, Any]
    fence_allowed: bool = True

    def _failure(self, answer: str) -> str | None:
        fenced = _FENCE.match(answer) if self.fence_allowed else None
        try:
            value = json.loads(fenced.group(1) if fenced else answer)
        except ValueError as error:
            return f"it is not JSON: {error}"
        problem = next(iter(Draft202012Validator(self.json_schema).iter_errors(value)), None)
        return None if problem is None else f"the schema refuses it: {problem.message}"


class SequenceCheck(_Check):
    """The answer is these items in this order, separated by `separator` and nothing else.

    List markers at the beginning of an item do not count.
    """

    kind: Literal["sequence"]
    items: list[str] = Field(min_length=2)
    separator: Literal["line", "comma"] = "line"

    def _failure(self, answer: str) -> str | None:
        parts = answer.splitlines() if self.separator == "line" else answer.rstrip(".").split(",")
        found = [re.sub(r"^(?:[-*•]|\d+[.)])\s+", "", part.strip()) for part in parts]
        folded = [part.casefold() for part in found if part]
        if folded == [item.casefold() for item in self.items]:
            return None
        return f"it lists {folded}"


class CaseCheck(_Check):
    """All letters are in one case."""

    kind: Literal["case"]
    case: Literal["upper", "lower"]
    minimum_words: int = 3

    def _failure(self, answer: str) -> str | None:
        if len(answer.split()) < self.minimum_words:
            return f"it has fewer than {self.minimum_words} words"
        right = answer.isupper() if self.case == "upper" else answer.islower()
        return None if right else f"not all letters are {self.case} case"


Check = Annotated[
    ExactCheck
    | PatternCheck
    | LengthCheck
    | WordsCheck
    | LanguageCheck
    | JsonCheck
    | SequenceCheck
    | CaseCheck,
    Field(discriminator="kind"),
]


class ObediencePrompt(BaseModel):
    """One instruction and the checks that its answer must all pass.

    `good` and `bad` are sample answers that the checks must accept and refuse.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: str
    category: str
    prompt: str
    checks: list[Check] = Field(min_length=1)
    good: list[str] = Field(min_length=1)
    bad: list[str] = Field(min_length=1)

    def failure(self, answer: str) -> str | None:
        """Why the answer disobeys, or None."""
        for check in self.checks:
            reason = check.failure(answer)
            if reason is not None:
                return reason
        return None


class _PromptFile(BaseModel):
    model_config = ConfigDict(extra="forbid")

    category: str
    prompts: list[dict[str, Any]] = Field(min_length=1)


def load_prompts(folder: Path) -> list[ObediencePrompt]:
    """The prompts of all YAML files of a folder; raise `InputError` when one is wrong."""
    prompts: list[ObediencePrompt] = []
    for path in sorted(folder.glob("*.yaml")):
        try:
            content = _PromptFile.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
            prompts += [
                ObediencePrompt.model_validate({**fields, "category": content.category})
                for fields in content.prompts
            ]
        except (OSError, yaml.YAMLError, ValidationError) as error:
            raise InputError(
                f"The prompts of {path} cannot be used.",
                str(error),
                "Correct the file; those in `data/obedience` show the form.",
            ) from error
    ids = [prompt.id for prompt in prompts]
    repeated = sorted({name for name in ids if ids.count(name) > 1})
    if repeated or not prompts:
        raise InputError(
            f"The prompts in {folder} cannot be used.",
            f"Ids occur twice: {', '.join(repeated)}." if repeated else "There are none.",
            "Give each prompt an id of its own, in one of the folder's YAML files.",
        )
    return prompts


class Transcript(BaseModel):
    """A prompt, its answer, and why the answer failed (null: it passed)."""

    id: str
    category: str
    prompt: str
    answer: str
    failure: str | None


class ObedienceResult(BaseModel):
    """How a variant obeyed. Rates are fractions of the prompts that passed."""

    variant: str
    model: str
    artifact_id: str
    timestamp: UtcTime
    pass_rate: float
    pass_rate_by_category: dict[str, float]
    transcripts: list[Transcript]


_RESULT = TypeAdapter(ObedienceResult)


def judge_answers(
    prompts: Sequence[ObediencePrompt],
    answers: Sequence[str],
    *,
    variant: str,
    model: str,
    artifact_id: str,
) -> ObedienceResult:
    """Check every answer."""
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
        timestamp=datetime.datetime.now(datetime.UTC),
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
    """Let a variant answer all prompts, or find the answers of an earlier run.

    A damaged result is measured again and replaced.

    The result, with its transcripts, is kept under `results/obedience/`, by the artifact, the
    types of its KV cache and the prompts' content.
    """
    variant, artifact = subject.variant, subject.artifact
    identity = json.dumps(
        [artifact.artifact_id, variant.cache_type_k, variant.cache_type_v, MAX_TOKENS]
        + [prompt.model_dump(mode="json") for prompt in prompts],
        sort_keys=True,
    )
    key = hashlib.sha256(identity.encode()).hexdigest()[:16]
    path = results / _FOLDER / f"{variant.name}_{key}.json"
    known = _read_if_whole(path) if path.exists() else None
    if known is not None:
        return known
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
    result = judge_answers(
        prompts,
        answers.replies,
        variant=variant.name,
        model=subject.model_name,
        artifact_id=artifact.artifact_id,
    )
    write_record(path, result.model_dump_json(indent=2), "obedience result")
    return result


def obedience_results(results: Path) -> list[ObedienceResult]:
    """All results kept under `results` that can be read; a warning names the others."""
    found = map(_read_if_whole, sorted((results / _FOLDER).glob("*.json")))
    return [result for result in found if result is not None]


def _read_if_whole(path: Path) -> ObedienceResult | None:
    try:
        return read_record(path, _RESULT, "obedience result", "It is ignored until measured again.")
    except InputError as error:
        _log.warning("%s", error)
        return None
