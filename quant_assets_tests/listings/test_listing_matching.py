"""Titles as sellers write them, matched against the project's own GPU registry."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quant_assets.gpus.registry import load_registry
from quant_assets.listings.matching.matcher import MatchType, TitleMatcher
from quant_assets.listings.quarantine import QuarantineReason

REGISTRY = load_registry()
MATCHER = TitleMatcher(REGISTRY)


@pytest.mark.parametrize(
    ("title", "canonical_name", "gpu_count"),
    [
        ("Nvidia RTX A2000 12Gb", "RTX A2000 12GB", 1),
        ("H100 80GB PCIe OEM", "H100 PCIe 80GB", 1),
        ("Tesla P40 24G", "Tesla P40", 1),
        ("RTX 6000 Ada", "RTX 6000 Ada", 1),
        ("PNY RTX A6000 48GB retail", "RTX A6000", 1),
        ("Quadro RTX 6000 24GB passive", "Quadro RTX 6000", 1),
        ("RTX PRO 6000 Blackwell Server Edition 96GB", "RTX PRO 6000 Blackwell Server", 1),
        ("RTX 6000 Pro Blackwell 96GB", "RTX PRO 6000 Blackwell Workstation", 1),
        ("8x H100 SXM server", "H100 SXM5 80GB", 8),
        ("2x 3090 NVLink", "GeForce RTX 3090", 2),
        ("NVIDIA RTX 3090 24GB #970", "GeForce RTX 3090", 1),
        ("NVIDIA GTX 970 4GB", "GeForce GTX 970", 1),
        ("4pcs RTX 4080 16GB OEM PCI Express 4.0 x16", "GeForce RTX 4080", 4),
        ("A100 SXM4 40GB, lot of 4", "A100 SXM4 40GB", 4),
        ("4x V100 32GB SXM2 128GB total", "Tesla V100 SXM2 32GB", 4),
        ("ASUS TUF TX-RTX5060 TI O8G", "GeForce RTX 5060 Ti 8GB", 1),
        ("RTX4080S 16GD6X turbo", "GeForce RTX 4080 Super", 1),
        ("Yeston RX9070XT-16GD6 OC", "Radeon RX 9070 XT", 1),
        ("RTX 4070 Ti SUPER 16G", "GeForce RTX 4070 Ti Super", 1),
        ("RTX 4090D 48GB blower", "GeForce RTX 4090 D 48GB", 1),
        ("RTX 3090 PCIe 4.0 x16", "GeForce RTX 3090", 1),
        ("A100 40GB official PCIE version, not SXM", "A100 PCIe 40GB", 1),
        ("RTX 4090 24GB with cable and bracket", "GeForce RTX 4090", 1),
        ("Gigabyte RTX5070Ti WINDFORCE OC SFF 16G", "GeForce RTX 5070 Ti", 1),
        ("Mac Studio M2 Ultra 192GB", "M2 Ultra 192GB", 1),
        ("NVIDIA L40 48GB Ada Lovelace", "L40", 1),
        ("RTX 4060 8GB, better than RTX 3070", "GeForce RTX 4060", 1),
    ],
)
def test_title_names_its_card(title: str, canonical_name: str, gpu_count: int) -> None:
    match = MATCHER.match(title)
    assert (match.canonical_name, match.gpu_count) == (canonical_name, gpu_count), match
    assert match.match_type in (MatchType.EXACT, MatchType.RULE)


@pytest.mark.parametrize(
    ("title", "reason"),
    [
        ("RTX 6000", QuarantineReason.NEAR_MISS),
        ("NVIDIA RTX 4000 20GB", QuarantineReason.NEAR_MISS),
        ("A100 40 / 80", QuarantineReason.AMBIGUOUS_VARIANT),
        ("NVIDIA A100 40 / 80 GB PCIe", QuarantineReason.AMBIGUOUS_VARIANT),
        ("RTX 4090 24GB or 48GB", QuarantineReason.AMBIGUOUS_VARIANT),
        ("NVIDIA H100 80GB", QuarantineReason.AMBIGUOUS_VARIANT),
        ("RTX 4060 Ti", QuarantineReason.AMBIGUOUS_VARIANT),
        ("Tesla A100 64GB SXM4", QuarantineReason.MEMORY_MISMATCH),
        ("RTX 3060 Ti 12GB", QuarantineReason.MEMORY_MISMATCH),
        ("H100 80GB SXM5 converted to PCIe", QuarantineReason.FORM_FACTOR_MISMATCH),
        ("Radeon Pro W5700 8GB (RX 5700 XT)", QuarantineReason.SEVERAL_MODELS),
        ("RTX 4090 or 4080", QuarantineReason.SEVERAL_MODELS),
        ("RTX A4000 Ada", QuarantineReason.UNKNOWN_MODEL),
        ("RTX 5090 DD 24GB", QuarantineReason.UNKNOWN_MODEL),
        ("Radeon RX 6750 GRE 12G, equivalent to RTX 4060 Ti", QuarantineReason.UNKNOWN_MODEL),
        ("heat sink for A100", QuarantineReason.ACCESSORY),
        ("RTX 4090 box only", QuarantineReason.ACCESSORY),
        ("NVLink bridge for RTX A6000", QuarantineReason.ACCESSORY),
        ("L4 bracket", QuarantineReason.ACCESSORY),
        ("fan replacement for RTX 3080", QuarantineReason.ACCESSORY),
        ("PCIe riser x16", QuarantineReason.ACCESSORY),
        ("GTX 1080 Ti for parts", QuarantineReason.NOT_WORKING),
        ("GeForce RTX 4090 Laptop GPU 16GB", QuarantineReason.LAPTOP),
        ("Gaming PC Ryzen 7 RTX 4070", QuarantineReason.WHOLE_SYSTEM),
        ("DGX H100", QuarantineReason.WHOLE_SYSTEM),
        ("M2 SSD 16GB", QuarantineReason.NO_GPU_NAMED),
        ("'; DROP TABLE listings; --", QuarantineReason.NO_GPU_NAMED),
    ],
)
def test_doubtful_titles_are_refused_with_a_reason(title: str, reason: QuarantineReason) -> None:
    match = MATCHER.match(title)
    assert (match.reason, match.canonical_name) == (reason, None), match


def test_a_near_miss_lists_its_candidates() -> None:
    candidates = MATCHER.match("RTX 6000").candidates
    assert {"Quadro RTX 6000", "RTX 6000 Ada"} <= set(candidates)


def test_misspelt_words_are_forgiven_and_scored() -> None:
    match = MATCHER.match("RTX 6000 Adda generation 48GB")
    assert (match.canonical_name, match.match_type) == ("RTX 6000 Ada", MatchType.FUZZY)
    assert match.match_score is not None and 88 <= match.match_score < 100


@pytest.mark.parametrize("digit", ["RTX 4O90", "RTX 4091 24GB", "RTX 40900 24GB", "Tesla P41 24GB"])
def test_a_wrong_digit_is_never_forgiven(digit: str) -> None:
    assert MATCHER.match(digit).canonical_name is None


@pytest.mark.parametrize("gpu", REGISTRY.sold_alone.all, ids=lambda gpu: gpu.canonical_name)
def test_every_name_of_the_registry_finds_its_own_card(gpu) -> None:  # type: ignore[no-untyped-def]
    for name in (gpu.canonical_name, *gpu.aliases):
        for title in (name, f"{gpu.vendor} {name}", f"{gpu.vendor} {name} new, free shipping"):
            found = MATCHER.match(title).canonical_name
            assert found in (gpu.canonical_name, None), title
    assert MATCHER.match(gpu.canonical_name).canonical_name == gpu.canonical_name


def test_a_laptop_gpu_is_no_card_and_never_taken_for_one() -> None:
    laptop = [gpu for gpu in REGISTRY.all if gpu.form_factor == "laptop"]
    assert len(laptop) >= 50
    for gpu in laptop:
        for name in (gpu.canonical_name, *gpu.aliases):
            for title in (name, f"{gpu.vendor} {name} {gpu.vram_gb:g}GB {gpu.memory_type}"):
                match = MATCHER.match(title)
                assert match.canonical_name is None, title
                if gpu.family != "GeForce GTX 1050":  # Shared with desktop cards of other sizes.
                    assert match.reason is QuarantineReason.LAPTOP, title


@given(st.text(max_size=120))
def test_any_text_is_matched_to_the_registry_or_refused(title: str) -> None:
    match = MATCHER.match(title)
    if match.canonical_name is None:
        assert match.reason is not None
    else:
        assert match.reason is None
        assert match.canonical_name in REGISTRY.by_name
    assert match.gpu_count >= 1
