"""Index of the registry's names: which family a sequence of title tokens names."""

from collections import defaultdict
from collections.abc import Iterable
from typing import NamedTuple

from quant_assets.gpus.registry import GpuRegistry
from quant_assets.listings.matching.titles import Title, read_title

_NOISE = frozenset({"nvidia", "nv", "geforce", "amd", "ati", "intel", "apple", "generation"})
_DROPPABLE = ("tesla", "quadro", "radeon", "instinct", "rtx", "gtx", "rx", "arc")
_GPU_WORDS = frozenset(
    {"gpu", "gpus", "graphics", "graphic", "nvlink", "sli", "vram", "cuda", "turbo", "blower"}
)
"""Words that confirm that a short name such as 3090 or T4 means a card."""

Key = tuple[str, ...]
"""The tokens of a name, without vendor names."""


class Mention(NamedTuple):
    """A name in a title."""

    start: int
    """Position of its first token."""
    key: Key
    family: str | None
    """None when the name is shortened so far that several families share it."""


class Mentions(NamedTuple):
    """All names in a title."""

    found: list[Mention]
    covered: set[int]
    """Positions of the tokens that belong to a name."""


class NameIndex:
    """The families of a registry by the tokens of their names, full and shortened; read-only.

    Laptop GPUs are no cards: their names are known only to be refused.
    """

    def __init__(self, registry: GpuRegistry) -> None:
        """Index all names of `registry`."""
        self.registry = registry.sold_alone
        self.family_of: dict[Key, str] = {}
        self.shared: dict[Key, set[str]] = defaultdict(set)
        """Shortened names that several families share."""
        self.memory_gb: dict[str, frozenset[float]] = {}
        """Memory sizes in a card's own names, and its actual size, by canonical name."""
        self.editions: dict[str, list[frozenset[str]]] = {}
        """Words that each name of a card adds to its family's name, by canonical name."""
        self._keys: dict[str, Key] = {}
        self._index_names()
        self.family_by_words = {frozenset(key): family for key, family in self.family_of.items()}
        self.keys_with_number: dict[str, set[Key]] = defaultdict(set)
        for key in self.family_of:
            for token in filter(has_digit, key):
                self.keys_with_number[token].add(key)
        lengths: dict[str, set[int]] = defaultdict(set)
        for key in (*self.family_of, *self.shared):
            lengths[key[0]].add(len(key))
        self._lengths = {first: sorted(found, reverse=True) for first, found in lengths.items()}
        laptop = [gpu for gpu in registry.all if gpu.form_factor == "laptop"]
        names = {self.key(name) for gpu in laptop for name in (gpu.canonical_name, *gpu.aliases)}
        self._laptop_names = names - self.family_of.keys()

    def key(self, name: str) -> Key:
        """The key of a registry name; each name is tokenized once."""
        key = self._keys.get(name)
        if key is None:
            key = self._keys[name] = core_tokens(read_title(name).tokens)
        return key

    def names_laptop_gpu(self, tokens: Key) -> bool:
        """Whether the whole name of a laptop GPU, such as RTX 2050 or RX 7700S, is in a title."""
        return any(_contains(tokens, name) for name in self._laptop_names)

    def mentions(self, tokens: Key, title: Title) -> Mentions:
        """The names in a title, the longest at each position."""
        found: list[Mention] = []
        covered: set[int] = set()
        index = 0
        while index < len(tokens):
            for length in self._lengths.get(tokens[index], ()):
                key = tokens[index : index + length]
                family = self.family_of.get(key)
                if family is None and key not in self.shared:
                    continue
                if family is not None and is_weak(key) and not self._confirmed(family, title):
                    continue
                found.append(Mention(index, key, family))
                covered.update(range(index, index + len(key)))
                index += len(key)
                break
            else:
                index += 1
        return Mentions(found, covered)

    def card_names(self, families: Iterable[str]) -> list[str]:
        """The canonical names of all cards of `families`, sorted."""
        return sorted(
            gpu.canonical_name for family in families for gpu in self.registry.families[family]
        )

    def _index_names(self) -> None:
        full: dict[Key, set[str]] = defaultdict(set)
        for family, variants in self.registry.families.items():
            family_key = self.key(family)
            full[family_key].add(family)
            for gpu in variants:
                readings = [read_title(name) for name in (gpu.canonical_name, *gpu.aliases)]
                self.memory_gb[gpu.canonical_name] = frozenset({gpu.vram_gb}).union(
                    *(reading.memory_gb for reading in readings)
                )
                self.editions[gpu.canonical_name] = [
                    frozenset(core_tokens(reading.tokens)) - set(family_key) for reading in readings
                ]
                for reading in readings:
                    key = core_tokens(reading.tokens)
                    if len(variants) == 1 or not set(family_key) < set(key):
                        full[key].add(family)
        self.family_of = {
            key: next(iter(owners)) for key, owners in full.items() if key and len(owners) == 1
        }
        shortened: dict[Key, set[str]] = defaultdict(set)
        for key, family in self.family_of.items():
            for word in _DROPPABLE:
                short = tuple(token for token in key if token != word)
                if short and short != key and short not in full and any(map(has_digit, short)):
                    shortened[short].add(family)
        for short, owners in shortened.items():
            inside = {family for key, family in self.family_of.items() if _contains(key, short)}
            if len(owners | inside) == 1:
                self.family_of[short] = next(iter(owners))
            else:
                self.shared[short] = owners | inside

    def _confirmed(self, family: str, title: Title) -> bool:
        """Whether the title's vendor, memory or words confirm a short name such as T4."""
        variants = self.registry.families[family]
        vendor = variants[0].vendor
        if vendor in title.vendors or len(title.tokens) == 1:
            return True
        if vendor == "Apple" or title.vendors:
            return False
        if title.gpu_count > 1 or _GPU_WORDS & set(title.tokens):
            return True
        return any(self.memory_gb[gpu.canonical_name] & title.memory_gb for gpu in variants)


def core_tokens(tokens: Iterable[str]) -> Key:
    """The tokens without vendor names."""
    return tuple(token for token in tokens if token not in _NOISE)


def has_digit(token: str) -> bool:
    """Whether the token contains a digit."""
    return any(char.isdigit() for char in token)


def is_weak(key: Key) -> bool:
    """Whether a key is so short (T4, 3090 Ti) that it may mean something else."""
    return (len(key) == 1 and len(key[0]) <= 3) or key[0].isdigit()


def _contains(key: Key, part: Key) -> bool:
    return any(key[start : start + len(part)] == part for start in range(len(key) - len(part) + 1))
