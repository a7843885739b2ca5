"""Facts in a seller's title: name tokens, memory, form factor, number of GPUs, kind of offer."""

import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

from quant_assets.gpus.registry import Vendor
from quant_assets.listings.quarantine import QuarantineReason

VENDOR_WORDS: dict[str, Vendor] = {
    "nvidia": "NVIDIA",
    "nv": "NVIDIA",
    "geforce": "NVIDIA",
    "tesla": "NVIDIA",
    "quadro": "NVIDIA",
    "rtx": "NVIDIA",
    "gtx": "NVIDIA",
    "titan": "NVIDIA",
    "amd": "AMD",
    "ati": "AMD",
    "radeon": "AMD",
    "instinct": "AMD",
    "intel": "Intel",
    "arc": "Intel",
    "apple": "Apple",
    "mac": "Apple",
    "macbook": "Apple",
    "imac": "Apple",
}
"""Words in a title that reveal the GPU's vendor."""

MAX_TITLE_CHARACTERS = 500
"""Only this much of a title is read; names come first."""

_STARRED_COUNT = re.compile(r"^\s*(\d{1,2})\s*\*")
_COMPARISON = re.compile(
    r"\b(?:equivalent to|comparable (?:to|with)|better than|faster than|vs"
    r"|(?:pulled|removed|taken) from)\b.*"
)
_NEGATION = re.compile(r"\b(?:not|no|non)[\s-]+(?:an? )?(?=sxm|pcie?\b|nvl\b|ti\b|super\b)\w+")
_ITEM_NUMBER = re.compile(r"#\d{3}\b")
"""Such as #970, which is no GTX 970."""
_GLUED_PREFIX = re.compile(r"(?=[rg]tx[\s-]?\d{3})(?<=[a-z])")
_GLUED_MEMORY = re.compile(r"\b((?:rtx|gtx|rx)[\s-]?\d{4})(?=\d{1,2}\s?gb?\b)")
_MEMORY_TYPE = r"gddr\d{1,2}x?|hbm\d?e?"
_MEMORY = re.compile(
    r"(?<![a-z0-9.,])o?(\d{1,3})\s*-?\s*(?:gigabytes?|gigs?|gib|gb|g)(?:d(\d)(x)?)?\b"
    r"(?!\s*/\s*s)(?!\s*(?:of\s+)?(?:ddr[345]\w*\s+)?(?:ecc\s+)?(?:ram|ssd|nvme|hdd|storage|disk)\b)"
)
_MEMORY_PAIR = re.compile(r"(?<![\w.])(\d{1,3})\s*(?:gb?)?\s*/\s*(\d{1,3})\s*(?:gb?)?(?![\w.])")
_MEMORY_TYPE_WORD = re.compile(rf"\b(?:({_MEMORY_TYPE})|d(\d)(x)?)\b")
_BUS_GENERATION = re.compile(
    r"\bpci[\s-]?e(?:xpress)?\s*(?:gen\s*)?\d(?:\.\d)?(?:\s*x\s?\d{1,2})?\b"
)
_BUS_WIDTH = re.compile(r"\b(?:pci[\s-]?e?(?:xpress)?|gen\s*\d|\d\.0)\s*x\s?\d{1,2}\b")
_SXM = re.compile(r"\bsxm\d?\b")
_PCIE = re.compile(r"\bpci(?:[\s-]?e(?:xpress)?)?\b")
_OAM = re.compile(r"\boam\b")

_COUNT = re.compile(
    r"^\W*(\d{1,2})\s*(?:x|pcs?|pieces?|units?|stk)\b"
    r"|^\W*\((\d{1,2})\)\s"
    r"|\b(?=[\dlbspqt])(?:(?:lot|set|bundle|pack|qty|quantity)\s*(?:of)?\s*:?\s*(\d{1,2})\b"
    r"|(?<![.-])(\d{1,2})\s?x\s+(?=(?:nvidia|geforce|amd|radeon|tesla|quadro|rtx|gtx|rx|intel"
    r"|arc|instinct|[abhlmptv]\d|mi\d|gh?b?\d{3}|\d{4}\b))"
    r"|(?<![.-])([1-9]\d?)[\s-]?gpus?\b"
    r"|(pair|twin pack)\b)"
)
"""The lookahead skips most words without trying the alternatives."""
_TIMES = re.compile(r"\sx\s?\d")
_COUNT_AFTER = re.compile(
    r"(?:\d\w*|\bti|super|xtx?|\bada|nvl|pcie)\s+x\s?(\d{1,2})(?=\s*(?:$|[,;)/|-]|gpus?\b|cards?\b"
    r"|nvlink|servers?\b|bundle|lot\b|set\b))"
)

_GLUED_SERIES = re.compile(
    r"\b(?:(?:rtx|gtx|rx|gt|arc|quadro|tesla|titan|radeon|geforce|instinct)(?=\d|pro)"
    r"|(?:rtx|gtx|quadro|radeon|arc)(?=[atwb]\d{2,4}))"
)
_GLUED_SUFFIX = re.compile(
    r"\b(?:pro(?=\d{4})"
    r"|\d{3,4}(?=(?:ti|super|xtx|xt|gre|sff|ada|dd?|s|m)(?:super|ada)?\b)"
    r"|(?:gh?[bh]?\d{3}|[abhv]\d{3}s?)(?=(?:nvl|sxm\d?|pcie)\b)"
    r"|w7900(?=ds\b))"
)
_GLUED_SUPER = re.compile(r"\bti(?=super\b)")
_TOKEN = re.compile(r"[a-z]+\d+[a-z0-9]*|\d+(?:\.\d+)?[a-z]*|[a-z]+")
_SPELLINGS = {"4080 s": "4080 super", "4070 s": "4070 super", "4070 ti s": "4070 ti super"}
_SPELLING = re.compile(r"\b(4080|4070(?: ti)?) s\b")
_MAX_Q = re.compile(r"\bmax[\s-]?q\b")

_REFUSED = re.compile(
    r"\b(?:(?P<not_working>for parts|parts only|not working|non[\s-]?working|faulty|defective|broken"
    r"|dead|defekt)"
    r"|(?P<laptop>laptop|notebook|mobile|mxm)"
    r"|(?P<whole_system>gaming pc|desktop pc|mining rig|tower pc|prebuilt|ryzen|core i[3579]"
    r"|i[3579]-\d{4,5}\w*))\b"
)
"""Each group is named after its quarantine reason."""
_ACCESSORY = re.compile(
    r"\b(?:box only|only (?:the )?box|empty box|heat\s?sinks?|water\s?blocks?|bridge|risers?"
    r"|holder|anti[\s-]?sag|support (?:bracket|stand)|thermal pads?"
    r"|capture (?:card|box|device|unit)|stickers?|posters?|power cables?|enclosure|no gpu"
    r"|without gpu|keychain|mouse\s?pad|(?:replacement|cooling) fans?|fan replacement|sync ii"
    r"|framelock|cooler only|cooling kit|bracket only|license|mining frame|dummy plug"
    r"|(?=[abcmprs])(?<!low profile )(?<!full height )(?<!lp )(?:cables?|adapters?|brackets?"
    r"|coolers?|covers?|radiators?|power supply|psu|mounts?|back\s?plates?|shrouds?))\b"
)
_INCLUDED = re.compile(
    r"(?:\b(?:with|incl|including|plus)\b|w/|[+&])[\s.]*(?:\w+\s+){0,2}?(?:heat\s?sinks?|shrouds?"
    r"|brackets?|cables?|coolers?|adapters?|back\s?plates?|risers?|nvlink bridge)\b"
    r"(?:\s*(?:and|[,&+])\s*(?:\w+\s+)?(?:shrouds?|brackets?|cables?|adapters?))*"
)
_FOR = re.compile(r"\b(?:for|fits|compatible with|suitable for|suits)\b")
_SOFT_ACCESSORY = re.compile(
    r"\b(?:cables?|adapters?|brackets?|coolers?|fans?|covers?|stands?|kits?|mounts?|blocks?|docks?"
    r"|psu|power supply|plates?|ducts?|cases?|tools?)\b"
)


@dataclass(frozen=True)
class Title:
    """The facts of one title; a fact that it does not state is empty."""

    tokens: tuple[str, ...]
    """Lower-case words without memory sizes, counts and bus descriptions, in order."""
    memory_gb: frozenset[float]
    memory_pair_gb: frozenset[float]
    """Two sizes written as "40 / 80"; they count as memory only if the card exists with both."""
    memory_types: frozenset[str]
    form_factors: frozenset[str]
    gpu_count: int
    vendors: frozenset[Vendor]
    refusal: QuarantineReason | None
    """Why the offer is not a single usable GPU, whatever card it names."""


def read_title(text: str) -> Title:
    """Read a title; never raises."""
    title = _plain(text)
    refusal = _refusal(title)
    title = _COMPARISON.sub(" ", title)
    title = _NEGATION.sub(" ", title)
    title = _ITEM_NUMBER.sub(" ", title)
    if "max" in title:
        title = _MAX_Q.sub("maxq", title)
    if "tx" in title:
        title = _GLUED_PREFIX.sub(" ", title)
    title = _GLUED_MEMORY.sub(_spaced, title)
    sizes = list(_MEMORY.finditer(title))
    memory_types = _memory_types(title, sizes)
    memory = frozenset(float(match[1]) for match in sizes)
    pair = frozenset[float]()
    if "/" in title:
        pair = frozenset(
            float(size) for match in _MEMORY_PAIR.finditer(title) for size in match.groups()
        )
    if sizes:
        title = _MEMORY.sub(" ", title)
    title = _MEMORY_TYPE_WORD.sub(" ", title)
    count, title = _take_count(title)
    form_factors, title = _take_form_factors(title)
    title = " ".join(map(_unglued, title.split(" ")))
    if "4080 s" in title or "4070 " in title:
        title = _SPELLING.sub(lambda match: _SPELLINGS[match[0]], title)
    tokens = tuple(_TOKEN.findall(title))
    return Title(
        tokens=tokens,
        memory_gb=memory,
        memory_pair_gb=pair,
        memory_types=memory_types,
        form_factors=form_factors,
        gpu_count=count,
        vendors=frozenset(VENDOR_WORDS[token] for token in tokens if token in VENDOR_WORDS),
        refusal=refusal,
    )


def _plain(text: str) -> str:
    """The title in lower case, without accents, trademark signs and typographic characters."""
    text = text[:MAX_TITLE_CHARACTERS]
    if not text.isascii():
        text = unicodedata.normalize("NFKD", text.replace("™", " ").replace("®", " "))
        text = "".join(char for char in text if not unicodedata.combining(char))
        text = text.replace("×", "x")
    return " ".join(_STARRED_COUNT.sub(r"\1x ", text.casefold().replace("_", " ")).split())


@lru_cache(maxsize=1 << 16)
def _unglued(word: str) -> str:
    """A word split into its series, number and suffixes; cached, since titles share most words."""
    word = _GLUED_SUFFIX.sub(_spaced, _GLUED_SERIES.sub(_spaced, word))
    return _GLUED_SUPER.sub("ti ", word)


def _spaced(match: re.Match[str]) -> str:
    return f"{match[0]} "


def _memory_types(title: str, sizes: Iterable[re.Match[str]]) -> frozenset[str]:
    """Memory types named by the title or its sizes, such as `gddr6x` or `hbm2e`."""
    found = {
        word or f"gddr{generation}{extended or ''}"
        for word, generation, extended in _MEMORY_TYPE_WORD.findall(title)
    }
    found |= {f"gddr{match[2]}{match[3] or ''}" for match in sizes if match[2]}
    return frozenset(found)


def _take_count(title: str) -> tuple[int, str]:
    """The stated number of GPUs (default: 1) and the title without that statement."""
    match = _COUNT.search(title)
    if match:
        stated = next(group for group in match.groups() if group)
        count = int(stated) if stated.isdigit() else 2
        if count > 0:
            return count, f"{title[: match.start()]} {title[match.end() :]}"
    if not _TIMES.search(title):
        return 1, title
    without_bus = _BUS_WIDTH.sub(lambda match: " " * len(match[0]), title)
    match = _COUNT_AFTER.search(without_bus)
    if match and int(match[1]) > 0:
        return int(match[1]), f"{title[: match.start(1) - 1]} {title[match.end() :]}"
    return 1, title


def _take_form_factors(title: str) -> tuple[frozenset[str], str]:
    """The stated form factors and the title without them."""
    if not any(word in title for word in ("pci", "sxm", "oam", "gen", ".0")):
        return frozenset(), title
    sxm, oam = bool(_SXM.search(title)), bool(_OAM.search(title))
    # "PCIe Gen5" in an offer of an SXM server describes the server's slots.
    rest = _BUS_GENERATION.sub(" ", title) if sxm or oam else title
    found = {
        name
        for name, stated in (("sxm", sxm), ("oam", oam), ("pcie", bool(_PCIE.search(rest))))
        if stated
    }
    for pattern in (_BUS_GENERATION, _BUS_WIDTH, _SXM, _OAM, _PCIE):
        title = pattern.sub(" ", title)
    return frozenset(found), title


def _refusal(title: str) -> QuarantineReason | None:
    """Why the offer is not a usable GPU on its own, judging by its words; None if it may be."""
    if _ACCESSORY.search(title):
        bare = title[:1] + _INCLUDED.sub(" ", title[1:])
        if _ACCESSORY.search(bare):
            return QuarantineReason.ACCESSORY
    first_for = _FOR.search(title)
    if first_for and _SOFT_ACCESSORY.search(title[: first_for.start()]):
        return QuarantineReason.ACCESSORY
    refused = _REFUSED.search(title)
    return QuarantineReason(refused.lastgroup) if refused and refused.lastgroup else None
