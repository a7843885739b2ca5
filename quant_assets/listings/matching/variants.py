"""The choice between the variants of a family by what the title states.

Memory size, form factor, memory type and edition decide. A statement that contradicts the registry,
or leaves two cards open, is refused.
"""

from collections.abc import Sequence
from typing import NamedTuple

from quant_assets.gpus.registry import Gpu
from quant_assets.listings.matching.name_index import Key, Mentions, NameIndex
from quant_assets.listings.matching.titles import Title
from quant_assets.listings.quarantine import QuarantineReason

VARIANT_WORDS = frozenset(
    {"ti", "super", "xt", "xtx", "gre", "ada", "blackwell", "maxq", "sff", "nvl", "embedded"}
    | {"module", "modul"}
)
"""Words that turn a name into another card's, wherever they stand in the title."""
SUFFIXES = frozenset({"d", "dd", "s", "m", "g", "pro", "v2"})
"""Words that turn the name directly before them into another card's."""

_APPLE_SUFFIXES = frozenset({"pro", "max", "ultra"})
_SYSTEM_WORDS = frozenset({"dgx", "hgx"})
_STRICT_FORMS = frozenset({"sxm", "oam"})
"""Form factors that a title states only when it means them."""


class Refusal(NamedTuple):
    """Why no card was chosen, and the canonical names of the cards that came close."""

    reason: QuarantineReason
    candidates: Sequence[str] = ()


class VariantChooser:
    """Chooses between the variants of a family; caches facts per family."""

    def __init__(self, index: NameIndex) -> None:
        """Choose from the cards of `index`."""
        self._index = index
        self._families = index.registry.families
        self._own_words_of: dict[str, frozenset[str]] = {}
        self._plain_names: dict[tuple[str, str, str], Gpu | None] = {}

    def choose(self, title: Title, tokens: Key, family: str, mentions: Mentions) -> Gpu | Refusal:
        """The variant of `family` that the title means, or why it cannot be determined."""
        stray = self._stray_words(family, tokens, mentions)
        if stray:
            words = frozenset(token for mention in mentions.found for token in mention.key) | stray
            other = self._index.family_by_words.get(words)
            if other is None:
                names = self._index.card_names({family})
                return Refusal(QuarantineReason.UNKNOWN_MODEL, names)
            family = other
        candidates = self._families[family]
        if _SYSTEM_WORDS & set(tokens) and title.gpu_count == 1:
            return _refused(QuarantineReason.WHOLE_SYSTEM, candidates)
        sizes = self._stated_sizes(candidates, title)
        by_memory = self._with_memory(candidates, sizes, title.gpu_count)
        if not by_memory:
            return _refused(QuarantineReason.MEMORY_MISMATCH, candidates)
        by_form = _with_stated_form(by_memory, title)
        if not by_form:
            return _refused(QuarantineReason.FORM_FACTOR_MISMATCH, by_memory)
        left = self._with_stated_edition(by_form, title, tokens)
        if len({gpu.vram_gb for gpu in left}) == 1 or not sizes:
            named = self._plainly_named(family, title, sizes)
            left = [gpu for gpu in left if gpu is named] or left
        if len(left) > 1:
            return _refused(QuarantineReason.AMBIGUOUS_VARIANT, left)
        return left[0]

    def _stray_words(self, family: str, tokens: Key, mentions: Mentions) -> frozenset[str]:
        """Words of the title that turn the family's name into another card's."""
        variants = self._families[family]
        # Sellers call any small GeForce card SFF; on a workstation card it is another product.
        consumer = variants[0].segment == "consumer"
        words = VARIANT_WORDS - {"sff"} if consumer else VARIANT_WORDS
        suffixes = _APPLE_SUFFIXES if variants[0].vendor == "Apple" else SUFFIXES
        stray = {
            token
            for index, token in enumerate(tokens)
            if index not in mentions.covered and token in words
        }
        for start, key, _ in mentions.found:
            after = start + len(key)
            if after < len(tokens) and after not in mentions.covered and tokens[after] in suffixes:
                stray.add(tokens[after])
        return frozenset(stray - self._own_words(family)) if stray else frozenset()

    def _own_words(self, family: str) -> frozenset[str]:
        """Words in the names and architectures of a family's variants."""
        own = self._own_words_of.get(family)
        if own is None:
            variants, index = self._families[family], self._index
            own = frozenset(index.key(family)).union(
                *(edition for gpu in variants for edition in index.editions[gpu.canonical_name]),
                *(index.key(gpu.architecture) for gpu in variants),
            )
            if any(gpu.form_factor in _STRICT_FORMS for gpu in variants):
                own |= {"module", "modul"}
            self._own_words_of[family] = own
        return own

    def _stated_sizes(self, candidates: Sequence[Gpu], title: Title) -> frozenset[float]:
        """The memory sizes in the title; "40 / 80" counts where the card exists with both."""
        known = {size for gpu in candidates for size in self._index.memory_gb[gpu.canonical_name]}
        pair = title.memory_pair_gb
        return title.memory_gb | (pair if len(pair) > 1 and pair <= known else frozenset())

    def _with_memory(
        self, candidates: Sequence[Gpu], sizes: frozenset[float], gpu_count: int
    ) -> list[Gpu]:
        """Variants with one of the sizes, per card or for all cards of the offer together."""
        if not sizes:
            return list(candidates)
        return [
            gpu
            for gpu in candidates
            if sizes & self._index.memory_gb[gpu.canonical_name]
            or (gpu_count > 1 and gpu.vram_gb * gpu_count in sizes)
        ]

    def _with_stated_edition(
        self, candidates: Sequence[Gpu], title: Title, tokens: Key
    ) -> list[Gpu]:
        """Variants whose memory type and edition words agree best with the title."""
        left = list(candidates)
        if len(left) > 1 and title.memory_types:
            left = [gpu for gpu in left if gpu.memory_type.casefold() in title.memory_types] or left
        words = set(tokens)
        fits = {
            gpu.canonical_name: max(
                (
                    len(edition)
                    for edition in self._index.editions[gpu.canonical_name]
                    if edition <= words
                ),
                default=-1,
            )
            for gpu in left
        }
        best = max(fits.values())
        return [gpu for gpu in left if fits[gpu.canonical_name] == best]

    def _plainly_named(self, family: str, title: Title, sizes: frozenset[float]) -> Gpu | None:
        """The card that the registry finds by the family's name with the stated facts."""
        form = next(iter(title.form_factors), "")
        size = f"{min(sizes):g}GB" if sizes else ""
        facts = (family, form, size)
        if facts not in self._plain_names:
            names = (f"{family} {form} {size}", f"{family} {size} {form}", family)
            found = filter(None, map(self._index.registry.find, names))
            self._plain_names[facts] = next(found, None)
        return self._plain_names[facts]


def _refused(reason: QuarantineReason, candidates: Sequence[Gpu]) -> Refusal:
    return Refusal(reason, [gpu.canonical_name for gpu in candidates])


def _with_stated_form(candidates: Sequence[Gpu], title: Title) -> list[Gpu]:
    """Variants in the stated form factor; two stated ones fit none, no statement fits all."""
    if not title.form_factors:
        return list(candidates)
    if len(title.form_factors) > 1:
        return []
    left = [gpu for gpu in candidates if gpu.form_factor in title.form_factors]
    if left or title.form_factors & _STRICT_FORMS:
        return left
    # "PCIe" says little about a card that exists in one other form only, such as an SoC's machine.
    return [gpu for gpu in candidates if gpu.form_factor not in _STRICT_FORMS]
