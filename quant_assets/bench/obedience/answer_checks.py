"""Checks of an answer: each looks at the answer alone and gives the reason for a failure.

Surrounding white space is ignored.
"""

import json
import re
from abc import abstractmethod
from typing import Annotated, Any, Literal

from jsonschema import Draft202012Validator
from pydantic import BaseModel, ConfigDict, Field

from quant_assets.bench.obedience.function_words import Language, is_in_language, words_of

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
    """The number of words, sentences, lines or characters is within bounds."""

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
    """Some words must occur and others must not; case is ignored."""

    kind: Literal["words"]
    required: list[str] = []
    forbidden: list[str] = []
    minimum_words: int = 1

    def _failure(self, answer: str) -> str | None:
        words = set(words_of(answer))
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
    """The answer is in a language, and not as likely in another one (`is_in_language`)."""

    kind: Literal["language"]
    language: Language
    minimum_words: int = 4

    def _failure(self, answer: str) -> str | None:
        if len(words_of(answer)) < self.minimum_words:
            return f"it has fewer than {self.minimum_words} words"
        if is_in_language(answer, self.language):
            return None
        return f"its words are not clearly {self.language}"


class JsonCheck(_Check):
    """The answer is nothing but JSON that a schema accepts; `fence_allowed`: in a code fence, too."""

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
        return None if problem is None else f"the schema rejects it: {problem.message}"


class SequenceCheck(_Check):
    """The answer is these items in this order, separated by `separator` and nothing else.

    List markers at the beginning of an item are ignored.
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
