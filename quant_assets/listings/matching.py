"""From a seller's title to one card of the GPU registry, or to the reason why not.

The order is exact alias, then rules, then fuzzy match. The rules read the name, and let the
memory size, form factor, memory type and edition that the title states choose between the variants
of a family. Whatever contradicts the registry or leaves two cards open is refused: a wrong match
costs more than a row in quarantine.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import pairwise

from rapidfuzz import fuzz

from quant_assets.gpus.registry import Gpu, GpuRegistry
from quant_assets.listings.quarantine import QuarantineReason
from quant_assets.listings.titles import Title, read_title

EXACT_SCORE = 100.0
RULE_SCORE = 95.0
FUZZY_THRESHOLD = 88.0
"""Least rapidfuzz ratio (0 to 100) between the words of a title and a name."""
FUZZY_MARGIN = 6.0
"""How much better than the next card's the ratio must be."""

_NOISE = frozenset({"nvidia", "nv", "geforce", "amd", "ati", "intel", "apple", "generation"})
_DROPPABLE = ("tesla", "quadro", "radeon", "instinct", "rtx", "gtx", "rx", "arc")
_VARIANT_WORDS = frozenset(
    {"ti", "super", "xt", "xtx", "gre", "ada", "blackwell", "maxq", "sff", "nvl", "embedded"}
    | {"module", "modul"}
)
"""Words that make another card of a name, wherever they stand in the title."""
_SUFFIXES = frozenset({"d", "dd", "s", "m", "g", "pro", "v2"})
"""Words that make another card of a name directly before them."""
_APPLE_SUFFIXES = frozenset({"pro", "max", "ultra"})
_SERIES = frozenset(
    {"rtx", "gtx", "gt", "rx", "hd", "arc", "quadro", "tesla", "titan", "instinct", "grid"}
    | {"firepro", "vega", "gtx", "radeon", "geforce", "nvidia", "nvs"}
)
_GPU_WORDS = frozenset(
    {"gpu", "gpus", "graphics", "graphic", "nvlink", "sli", "vram", "cuda", "turbo", "blower"}
)
"""Words that show that a short name such as 3090 or T4 means a card."""
_SYSTEM_WORDS = frozenset({"dgx", "hgx"})
_CONTRADICTED_FORMS = frozenset({"sxm", "oam"})

Key = tuple[str, ...]


class MatchType(StrEnum):
    """How a title was matched to a card."""

    EXACT = "exact"
    RULE = "rule"
    FUZZY = "fuzzy"


@dataclass(frozen=True)
class TitleMatch:
    """One card with the way it was found, or the reason for quarantine with what it might be."""

    title: str
    gpu_count: int
    canonical_name: str | None = None
    match_type: MatchType | None = None
    match_score: float | None = None
    reason: QuarantineReason | None = None
    candidates: tuple[str, ...] = ()


class TitleMatcher:
    """Matches titles to the cards of one registry; build it once, it is read-only."""

    def __init__(self, registry: GpuRegistry) -> None:
        self._registry = registry
        self._keys: dict[str, Key] = {}
        self._family_of: dict[Key, str] = {}
        self._refused: dict[Key, set[str]] = defaultdict(set)
        self._memory: dict[str, frozenset[float]] = {}
        self._editions: dict[str, list[frozenset[str]]] = {}
        self._explained_of: dict[str, frozenset[str]] = {}
        self._plain_names: dict[tuple[str, str, str], Gpu | None] = {}
        self._index_names()
        lengths: dict[str, set[int]] = defaultdict(set)
        for key in (*self._family_of, *self._refused):
            lengths[key[0]].add(len(key))
        self._lengths = {first: sorted(found, reverse=True) for first, found in lengths.items()}
        self._by_token_set = {frozenset(key): family for key, family in self._family_of.items()}
        self._numbers: dict[str, set[Key]] = defaultdict(set)
        for key in self._family_of:
            for token in filter(_has_digit, key):
                self._numbers[token].add(key)

    def match(self, text: str) -> TitleMatch:
        """Match one title; never raises."""
        title = read_title(text)
        exact = self._registry.find(text)
        if exact is not None:
            return self._found(text, title, exact, MatchType.EXACT, EXACT_SCORE)
        if title.refusal is not None and not (
            title.refusal is QuarantineReason.LAPTOP and "Apple" in title.vendors
        ):
            return self._refuse(text, title, title.refusal)
        return self._match_by_rules(text, title)

    def _index_names(self) -> None:
        """Collect the token keys of every family, and which shortened keys name only one."""
        full: dict[Key, set[str]] = defaultdict(set)
        for family, variants in self._registry.families.items():
            family_key = self._key(family)
            full[family_key].add(family)
            for gpu in variants:
                readings = [read_title(name) for name in (gpu.canonical_name, *gpu.aliases)]
                self._memory[gpu.canonical_name] = frozenset({gpu.vram_gb}).union(
                    *(reading.memory_gb for reading in readings)
                )
                editions = [
                    frozenset(_core(reading.tokens)) - set(family_key) for reading in readings
                ]
                self._editions[gpu.canonical_name] = editions
                for reading in readings:
                    key = _core(reading.tokens)
                    if len(variants) == 1 or not set(family_key) < set(key):
                        full[key].add(family)
        self._family_of = {
            key: next(iter(owners)) for key, owners in full.items() if key and len(owners) == 1
        }
        shortened: dict[Key, set[str]] = defaultdict(set)
        for key, family in self._family_of.items():
            for word in _DROPPABLE:
                short = tuple(token for token in key if token != word)
                if short and short != key and short not in full and any(map(_has_digit, short)):
                    shortened[short].add(family)
        for short, owners in shortened.items():
            inside = {family for key, family in self._family_of.items() if _contains(key, short)}
            if len(owners | inside) == 1:
                self._family_of[short] = next(iter(owners))
            else:
                self._refused[short] = owners | inside

    def _key(self, name: str) -> Key:
        """The tokens of a registry name, read once."""
        key = self._keys.get(name)
        if key is None:
            key = self._keys[name] = _core(read_title(name).tokens)
        return key

    def _match_by_rules(self, text: str, title: Title) -> TitleMatch:
        tokens = _core(title.tokens)
        mentions, used = self._mentions(tokens, title)
        families = {family for _, _, family in mentions if family is not None}
        partial = [key for _, key, family in mentions if family is None]
        if len(families) > 1:
            return self._refuse(text, title, QuarantineReason.SEVERAL_MODELS, self._names(families))
        unknown = _unknown_model(title.tokens, {tokens[index] for index in used})
        if not families:
            return self._match_fuzzily(text, title, tokens, partial, unknown)
        if unknown:
            return self._refuse(text, title, QuarantineReason.SEVERAL_MODELS, self._names(families))
        family = families.pop()
        return self._choose_variant(text, title, tokens, family, mentions, used)

    def _mentions(
        self, tokens: Key, title: Title
    ) -> tuple[list[tuple[int, Key, str | None]], set[int]]:
        """The names in the title, longest first at each place, and the places they cover."""
        mentions: list[tuple[int, Key, str | None]] = []
        used: set[int] = set()
        index = 0
        while index < len(tokens):
            for length in self._lengths.get(tokens[index], ()):
                key = tokens[index : index + length]
                family = self._family_of.get(key)
                if family is None and key not in self._refused:
                    continue
                if family is not None and _is_weak(key) and not self._supported(family, title):
                    continue
                mentions.append((index, key, family))
                used.update(range(index, index + len(key)))
                index += len(key)
                break
            else:
                index += 1
        return mentions, used

    def _supported(self, family: str, title: Title) -> bool:
        """Whether the title confirms a short name such as T4 by its maker, memory or words."""
        variants = self._registry.families[family]
        vendor = variants[0].vendor
        if vendor in title.vendors or len(title.tokens) == 1:
            return True
        if vendor == "Apple" or title.vendors:
            return False
        if title.gpu_count > 1 or _GPU_WORDS & set(title.tokens):
            return True
        return any(self._memory[gpu.canonical_name] & title.memory_gb for gpu in variants)

    def _choose_variant(
        self,
        text: str,
        title: Title,
        tokens: Key,
        family: str,
        mentions: Sequence[tuple[int, Key, str | None]],
        used: set[int],
    ) -> TitleMatch:
        unexplained = self._unexplained(family, tokens, mentions, used)
        if unexplained:
            words = frozenset(token for _, key, _ in mentions for token in key) | unexplained
            other = self._by_token_set.get(words)
            if other is None:
                reason = QuarantineReason.UNKNOWN_MODEL
                return self._refuse(text, title, reason, self._names({family}))
            family = other
        candidates = list(self._registry.families[family])
        if _SYSTEM_WORDS & set(tokens) and title.gpu_count == 1:
            names = [gpu.canonical_name for gpu in candidates]
            return self._refuse(text, title, QuarantineReason.WHOLE_SYSTEM, names)
        sizes = self._stated_sizes(candidates, title)
        by_memory = self._with_memory(candidates, sizes, title.gpu_count)
        if not by_memory:
            names = [gpu.canonical_name for gpu in candidates]
            return self._refuse(text, title, QuarantineReason.MEMORY_MISMATCH, names)
        by_form = _with_stated_form(by_memory, title)
        if not by_form:
            names = [gpu.canonical_name for gpu in by_memory]
            return self._refuse(text, title, QuarantineReason.FORM_FACTOR_MISMATCH, names)
        left = self._with_stated_edition(by_form, title, tokens)
        if len({gpu.vram_gb for gpu in left}) == 1 or not sizes:
            named = self._plainly_named(family, title, sizes)
            left = [gpu for gpu in left if gpu is named] or left
        if len(left) > 1:
            names = [gpu.canonical_name for gpu in left]
            return self._refuse(text, title, QuarantineReason.AMBIGUOUS_VARIANT, names)
        return self._found(text, title, left[0], MatchType.RULE, RULE_SCORE)

    def _unexplained(
        self,
        family: str,
        tokens: Key,
        mentions: Sequence[tuple[int, Key, str | None]],
        used: set[int],
    ) -> frozenset[str]:
        """Words of the title that make another card of the family's name."""
        variants = self._registry.families[family]
        # GeForce makers call any small card SFF; on a workstation card it is another product.
        consumer = variants[0].segment == "consumer"
        words = _VARIANT_WORDS - {"sff"} if consumer else _VARIANT_WORDS
        suffixes = _APPLE_SUFFIXES if variants[0].vendor == "Apple" else _SUFFIXES
        loose = {
            token for index, token in enumerate(tokens) if index not in used and token in words
        }
        for start, key, _ in mentions:
            after = start + len(key)
            if after < len(tokens) and after not in used and tokens[after] in suffixes:
                loose.add(tokens[after])
        return frozenset(loose - self._explained(family)) if loose else frozenset()

    def _explained(self, family: str) -> frozenset[str]:
        """Words that the names of a family's variants have themselves, collected once."""
        explained = self._explained_of.get(family)
        if explained is None:
            variants = self._registry.families[family]
            explained = frozenset(self._key(family)).union(
                *(edition for gpu in variants for edition in self._editions[gpu.canonical_name]),
                *(self._key(gpu.architecture) for gpu in variants),
            )
            if any(gpu.form_factor in _CONTRADICTED_FORMS for gpu in variants):
                explained |= {"module", "modul"}
            self._explained_of[family] = explained
        return explained

    def _stated_sizes(self, candidates: Sequence[Gpu], title: Title) -> frozenset[float]:
        """The memory sizes in the title; "40 / 80" counts where the card has both."""
        known = {size for gpu in candidates for size in self._memory[gpu.canonical_name]}
        pair = title.memory_pair_gb
        return title.memory_gb | (pair if len(pair) > 1 and pair <= known else frozenset())

    def _with_memory(
        self, candidates: Sequence[Gpu], sizes: frozenset[float], gpu_count: int
    ) -> list[Gpu]:
        """Variants with one of the sizes, for one card or for all of them together."""
        if not sizes:
            return list(candidates)
        return [
            gpu
            for gpu in candidates
            if sizes & self._memory[gpu.canonical_name]
            or (gpu_count > 1 and gpu.vram_gb * gpu_count in sizes)
        ]

    def _with_stated_edition(
        self, candidates: Sequence[Gpu], title: Title, tokens: Key
    ) -> list[Gpu]:
        """Variants whose memory type and edition words the title states best."""
        left = list(candidates)
        if len(left) > 1 and title.memory_types:
            left = [gpu for gpu in left if gpu.memory_type.casefold() in title.memory_types] or left
        words = set(tokens)
        fits = {
            gpu.canonical_name: max(
                (
                    len(edition)
                    for edition in self._editions[gpu.canonical_name]
                    if edition <= words
                ),
                default=-1,
            )
            for gpu in left
        }
        best = max(fits.values())
        return [gpu for gpu in left if fits[gpu.canonical_name] == best]

    def _plainly_named(self, family: str, title: Title, sizes: frozenset[float]) -> Gpu | None:
        """The card that the family's name means with exactly the stated facts."""
        form = next(iter(title.form_factors), "")
        size = f"{min(sizes):g}GB" if sizes else ""
        facts = (family, form, size)
        if facts not in self._plain_names:
            names = (f"{family} {form} {size}", f"{family} {size} {form}", family)
            found = filter(None, map(self._registry.find, names))
            self._plain_names[facts] = next(found, None)
        return self._plain_names[facts]

    def _match_fuzzily(
        self, text: str, title: Title, tokens: Key, partial: Sequence[Key], unknown: bool
    ) -> TitleMatch:
        """Forgive misspelt words, never a digit; a second card close by is a near miss."""
        numbers = {token for token in tokens if _has_digit(token)}
        keys = {key for number in numbers for key in self._numbers.get(number, ())}
        scores: dict[str, float] = {}
        for key in keys:
            if _is_weak(key) or not {token for token in key if _has_digit(token)} <= numbers:
                continue
            name = " ".join(key)
            best = max(
                fuzz.ratio(" ".join(tokens[start : start + len(key)]), name)
                for start in range(max(1, len(tokens) - len(key) + 1))
            )
            family = self._family_of[key]
            scores[family] = max(best, scores.get(family, 0.0))
        ranked = sorted(scores.items(), key=lambda item: -item[1])
        near = {family for family, _ in ranked[:3]} | {
            family for key in partial for family in self._refused.get(key, ())
        }
        clear = len(ranked) == 1 or (ranked and ranked[0][1] - ranked[1][1] >= FUZZY_MARGIN)
        if clear and ranked[0][1] >= FUZZY_THRESHOLD:
            family, score = ranked[0]
            chosen = self._choose_named(text, title, tokens, family)
            if chosen.canonical_name is None:
                return chosen
            return TitleMatch(
                text, chosen.gpu_count, chosen.canonical_name, MatchType.FUZZY, round(score, 1)
            )
        for key in partial:
            words = frozenset(key) | (set(tokens) & (_VARIANT_WORDS | _SUFFIXES))
            if (completed := self._by_token_set.get(words)) is not None:
                return self._choose_named(text, title, tokens, completed)
        if partial or (ranked and ranked[0][1] >= FUZZY_THRESHOLD):
            return self._refuse(text, title, QuarantineReason.NEAR_MISS, self._names(near))
        if unknown or title.vendors:
            return self._refuse(text, title, QuarantineReason.UNKNOWN_MODEL)
        return self._refuse(text, title, QuarantineReason.NO_GPU_NAMED)

    def _choose_named(self, text: str, title: Title, tokens: Key, family: str) -> TitleMatch:
        """Choose among the variants of a family whose words stand apart in the title."""
        key = self._key(family)
        used = {index for index, token in enumerate(tokens) if token in key}
        return self._choose_variant(text, title, tokens, family, [(0, key, family)], used)

    def _names(self, families: Iterable[str]) -> list[str]:
        return sorted(
            gpu.canonical_name for family in families for gpu in self._registry.families[family]
        )

    def _found(
        self, text: str, title: Title, gpu: Gpu, match_type: MatchType, score: float
    ) -> TitleMatch:
        return TitleMatch(text, title.gpu_count, gpu.canonical_name, match_type, score)

    @staticmethod
    def _refuse(
        text: str, title: Title, reason: QuarantineReason, candidates: Sequence[str] = ()
    ) -> TitleMatch:
        return TitleMatch(text, title.gpu_count, reason=reason, candidates=tuple(candidates[:6]))


def _core(tokens: Iterable[str]) -> Key:
    """The tokens without makers' words."""
    return tuple(token for token in tokens if token not in _NOISE)


def _has_digit(token: str) -> bool:
    return any(char.isdigit() for char in token)


def _is_weak(key: Key) -> bool:
    """Whether a key is so short (T4, 3090 Ti) that it may mean something else."""
    return (len(key) == 1 and len(key[0]) <= 3) or key[0].isdigit()


def _contains(key: Key, part: Key) -> bool:
    return any(key[start : start + len(part)] == part for start in range(len(key) - len(part) + 1))


def _with_stated_form(candidates: Sequence[Gpu], title: Title) -> list[Gpu]:
    """Variants in the stated form factor; two stated ones fit none, none stated fits all."""
    if not title.form_factors:
        return list(candidates)
    if len(title.form_factors) > 1:
        return []
    left = [gpu for gpu in candidates if gpu.form_factor in title.form_factors]
    if left or title.form_factors & _CONTRADICTED_FORMS:
        return left
    # "PCIe" says little about a card that exists in one other form only, such as a SoC's machine.
    return [gpu for gpu in candidates if gpu.form_factor not in _CONTRADICTED_FORMS]


def _unknown_model(tokens: Key, known: set[str]) -> bool:
    """Whether a series word is followed by a number that no known name covers."""
    return any(
        word in _SERIES and _has_digit(token) and token not in known and len(token) > 1
        for word, token in pairwise(tokens)
    )
