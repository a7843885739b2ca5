"""Titles matched to cards: exact alias first, then rules, then a fuzzy match.

The rules find the family's name in the title and let the other facts of the title choose between
its variants. Whatever contradicts the registry, or leaves two cards open, is refused: a wrong match
costs more than a quarantined row.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import pairwise

from rapidfuzz import fuzz

from quant_assets.gpus.registry import Gpu, GpuRegistry
from quant_assets.listings.matching.name_index import (
    Key,
    Mention,
    Mentions,
    NameIndex,
    core_tokens,
    has_digit,
    is_weak,
)
from quant_assets.listings.matching.titles import Title, read_title
from quant_assets.listings.matching.variants import (
    SUFFIXES,
    VARIANT_WORDS,
    Refusal,
    VariantChooser,
)
from quant_assets.listings.quarantine import QuarantineReason

EXACT_SCORE = 100.0
RULE_SCORE = 95.0
FUZZY_THRESHOLD = 88.0
"""Minimum rapidfuzz ratio (0 to 100) between the words of a title and a name."""
FUZZY_MARGIN = 6.0
"""Minimum lead of the best ratio over that of the next card."""

_SERIES = frozenset(
    {"rtx", "gtx", "gt", "rx", "hd", "arc", "quadro", "tesla", "titan", "instinct", "grid"}
    | {"firepro", "vega", "gtx", "radeon", "geforce", "nvidia", "nvs"}
)
_MAX_CANDIDATES = 6


class MatchType(StrEnum):
    """How a title was matched to a card."""

    EXACT = "exact"
    RULE = "rule"
    FUZZY = "fuzzy"


@dataclass(frozen=True)
class TitleMatch:
    """The card of a title and how it was found, or the reason for quarantine with candidates."""

    title: str
    gpu_count: int
    canonical_name: str | None = None
    match_type: MatchType | None = None
    match_score: float | None = None
    reason: QuarantineReason | None = None
    candidates: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Found:
    gpu: Gpu
    match_type: MatchType
    score: float


class TitleMatcher:
    """Matches titles to the cards of one registry; build it once and reuse it."""

    def __init__(self, registry: GpuRegistry) -> None:
        """Index the names of `registry`; its laptop GPUs never match."""
        self._index = NameIndex(registry)
        self._registry = self._index.registry
        self._variants = VariantChooser(self._index)

    def match(self, text: str) -> TitleMatch:
        """Match one title; never raises."""
        title = read_title(text)
        outcome = self._outcome(text, title)
        if isinstance(outcome, Refusal):
            candidates = tuple(outcome.candidates[:_MAX_CANDIDATES])
            return TitleMatch(text, title.gpu_count, reason=outcome.reason, candidates=candidates)
        return TitleMatch(
            text, title.gpu_count, outcome.gpu.canonical_name, outcome.match_type, outcome.score
        )

    def _outcome(self, text: str, title: Title) -> _Found | Refusal:
        exact = self._registry.find(text)
        if exact is not None:
            return _Found(exact, MatchType.EXACT, EXACT_SCORE)
        if title.refusal is not None and not (
            title.refusal is QuarantineReason.LAPTOP and "Apple" in title.vendors
        ):
            return Refusal(title.refusal)
        return self._match_by_rules(title)

    def _match_by_rules(self, title: Title) -> _Found | Refusal:
        tokens = core_tokens(title.tokens)
        if self._index.names_laptop_gpu(tokens):
            return Refusal(QuarantineReason.LAPTOP)
        mentions = self._index.mentions(tokens, title)
        families = {mention.family for mention in mentions.found if mention.family is not None}
        if len(families) > 1:
            names = self._index.card_names(families)
            return Refusal(QuarantineReason.SEVERAL_MODELS, names)
        unknown = _names_unknown_model(title.tokens, {tokens[place] for place in mentions.covered})
        if not families:
            shared = [mention.key for mention in mentions.found]
            return self._match_fuzzily(title, tokens, shared, unknown)
        if unknown:
            names = self._index.card_names(families)
            return Refusal(QuarantineReason.SEVERAL_MODELS, names)
        chosen = self._variants.choose(title, tokens, families.pop(), mentions)
        if isinstance(chosen, Refusal):
            return chosen
        return _Found(chosen, MatchType.RULE, RULE_SCORE)

    def _match_fuzzily(
        self, title: Title, tokens: Key, shared: Sequence[Key], unknown: bool
    ) -> _Found | Refusal:
        """Tolerate misspelt words, never a wrong digit; two close cards are a near miss.

        `shared` are the shortened names in the title, `unknown` says that it names another model.
        """
        ranked = self._ranked_families(tokens)
        clear = len(ranked) == 1 or (ranked and ranked[0][1] - ranked[1][1] >= FUZZY_MARGIN)
        if clear and ranked[0][1] >= FUZZY_THRESHOLD:
            family, score = ranked[0]
            chosen = self._choose_apart(title, tokens, family)
            if isinstance(chosen, Refusal):
                return chosen
            return _Found(chosen, MatchType.FUZZY, round(score, 1))
        for key in shared:
            words = frozenset(key) | (set(tokens) & (VARIANT_WORDS | SUFFIXES))
            if (completed := self._index.family_by_words.get(words)) is not None:
                chosen = self._choose_apart(title, tokens, completed)
                if isinstance(chosen, Refusal):
                    return chosen
                return _Found(chosen, MatchType.RULE, RULE_SCORE)
        if shared or (ranked and ranked[0][1] >= FUZZY_THRESHOLD):
            near = {family for family, _ in ranked[:3]}.union(
                *(self._index.shared.get(key, ()) for key in shared)
            )
            return Refusal(QuarantineReason.NEAR_MISS, self._index.card_names(near))
        if unknown or title.vendors:
            return Refusal(QuarantineReason.UNKNOWN_MODEL)
        return Refusal(QuarantineReason.NO_GPU_NAMED)

    def _ranked_families(self, tokens: Key) -> list[tuple[str, float]]:
        """Families with the title's numbers and their best ratio with its words, best first."""
        numbers = {token for token in tokens if has_digit(token)}
        index = self._index
        keys = {key for number in numbers for key in index.keys_with_number.get(number, ())}
        scores: dict[str, float] = {}
        for key in keys:
            if is_weak(key) or not {token for token in key if has_digit(token)} <= numbers:
                continue
            name = " ".join(key)
            best = max(
                fuzz.ratio(" ".join(tokens[start : start + len(key)]), name)
                for start in range(max(1, len(tokens) - len(key) + 1))
            )
            family = index.family_of[key]
            scores[family] = max(best, scores.get(family, 0.0))
        return sorted(scores.items(), key=lambda item: (-item[1], item[0]))

    def _choose_apart(self, title: Title, tokens: Key, family: str) -> Gpu | Refusal:
        """Choose between the variants of a family whose words stand apart in the title."""
        key = self._index.key(family)
        covered = {place for place, token in enumerate(tokens) if token in key}
        mentions = Mentions([Mention(0, key, family)], covered)
        return self._variants.choose(title, tokens, family, mentions)


def _names_unknown_model(tokens: Key, known: set[str]) -> bool:
    """Whether a series word is followed by a number that no known name covers."""
    return any(
        word in _SERIES and has_digit(token) and token not in known and len(token) > 1
        for word, token in pairwise(tokens)
    )
