from pathlib import Path

import pytest

from quant_assets.bench.settings import BenchSettings, resolve_settings, resolve_variant_names
from quant_assets.bench.variants import load_settings, load_variants
from quant_assets.errors import InputError
from quant_assets.host.devices import available_physical_cores
from quant_assets.settings import PROJECT_ROOT

SHIPPED = PROJECT_ROOT / "data" / "variants.yaml"


def test_the_shipped_file_has_the_variants_and_counts() -> None:
    variants = load_variants(SHIPPED)
    assert {"q4_0", "q4_K_M", "q4_KV", "q8_0", "q8_0-kv-hybrid", "f16"} <= set(variants)
    hybrid = variants["q8_0-kv-hybrid"]
    assert (hybrid.level, hybrid.cache_type_k, hybrid.cache_type_v) == ("Q8_0", "q8_0", "q4_0")
    assert variants["q4_KV"].level == variants["q4_K_M"].level
    settings = load_settings(SHIPPED)
    assert (settings.batch_sizes, settings.warmups, settings.runs) == ((1, 4, 8), 3, 20)


def test_flags_override_the_environment_which_overrides_the_file() -> None:
    environment = {"BATCH_SIZES": "2, 4", "WARMUPS": "1", "RUNS": "5"}
    configured = BenchSettings(runs=9, generated_tokens=7)
    settings = resolve_settings(configured, {"runs": 6, "warmups": None}, environment)
    assert settings.batch_sizes == (2, 4)
    assert (settings.warmups, settings.runs, settings.generated_tokens) == (1, 6, 7)
    assert resolve_settings(configured, {}, {}) == configured


@pytest.mark.parametrize(
    "environment",
    [{"RUNS": "0"}, {"RUNS": "many"}, {"BATCH_SIZES": "4,-1"}, {"BATCH_SIZES": "1000000"}],
)
def test_invalid_counts_are_refused(environment: dict[str, str]) -> None:
    with pytest.raises(InputError, match="settings are invalid"):
        resolve_settings(BenchSettings(), {}, environment)


def test_variants_are_chosen_by_flags_then_by_the_environment() -> None:
    known = ["f16", "q8_0", "q4_0"]
    assert resolve_variant_names(known, None, {}) == known
    assert resolve_variant_names(known, None, {"VARIANTS": "q4_0 f16"}) == ["f16", "q4_0"]
    assert resolve_variant_names(known, ["q8_0"], {"VARIANTS": "q4_0"}) == ["q8_0"]
    with pytest.raises(InputError, match="no variant q9"):
        resolve_variant_names(known, ["q9"], {})


def test_threads_never_exceed_the_physical_cores() -> None:
    cores = available_physical_cores()
    assert BenchSettings(threads=10_000).effective_threads == cores
    assert BenchSettings().effective_threads == cores
    assert BenchSettings(threads=1).effective_threads == 1


@pytest.mark.parametrize(
    "entry",
    [
        "../escape: {format: gguf, level: F16}",
        "a: {format: gguf, level: F16, bits: 4}",
        "a: {format: gptq, level: 4bit-g64, cache_type_k: q8_0}",
        "a: {format: gptq, level: int4}",
        "a: {format: awq, level: 3bit-g64}",
        "a: {format: gptq, level: 4bit-g64, group_size: 128}",
        "a: {format: gguf, level: F16, cache_type_k: q9_9}",
        "a: {format: gguf, level: F16, surprise: 1}",
        "a: 5",
    ],
)
def test_invalid_variants_are_refused_with_the_files_name(tmp_path: Path, entry: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(f"variants:\n  {entry}\n", encoding="utf-8")
    with pytest.raises(InputError, match=r"mine\.yaml"):
        load_variants(path)
