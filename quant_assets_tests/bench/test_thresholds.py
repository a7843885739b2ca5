from pathlib import Path
from typing import Any

import pytest

from quant_assets.bench.thresholds import Threshold, Thresholds, check_records, load_thresholds
from quant_assets.errors import CheckFailed, InputError
from quant_assets.settings import PROJECT_ROOT

LIMITS = Thresholds(
    models={
        "*": {"*": Threshold(p95_ms=100), "q4": Threshold(perplexity_ratio=1.2)},
        "tiny": {"*": Threshold(rss_max_mb=500), "q4": Threshold(p95_ms=50)},
    }
)


def test_the_most_specific_entry_gives_each_limit() -> None:
    assert LIMITS.of("tiny", "q4") == Threshold(p95_ms=50, rss_max_mb=500, perplexity_ratio=1.2)
    assert LIMITS.of("tiny", "q8") == Threshold(p95_ms=100, rss_max_mb=500)
    assert LIMITS.of("other", "q8") == Threshold(p95_ms=100)


def test_a_record_within_its_limits_passes(new_record: Any) -> None:
    record, _ = new_record([50.0] * 20, perplexity_ratio=1.2)
    check_records([record], LIMITS)


@pytest.mark.parametrize(
    ("fields", "name"),
    [
        ({"p95_ms": 50.1}, "p95_ms"),
        ({"peak_rss_bytes": 500_000_001}, "rss_max_mb"),
        ({"perplexity_ratio": 1.21}, "perplexity_ratio"),
    ],
)
def test_each_breach_is_named(new_record: Any, fields: dict[str, Any], name: str) -> None:
    record, _ = new_record([10.0] * 20, **fields)
    assert [breach.name for breach in LIMITS.breaches(record)] == [name]
    with pytest.raises(CheckFailed, match=f"tiny q4 batch 1: {name}"):
        check_records([record], LIMITS)


@pytest.mark.parametrize(("low", "breached"), [(1.19, False), (1.2, False), (1.201, True)])
def test_a_ratio_breaches_its_limit_when_its_whole_interval_is_over_it(
    new_record: Any, low: float, breached: bool
) -> None:
    record, _ = new_record(
        [10.0] * 20, perplexity_ratio=1.25, perplexity_ratio_low=low, perplexity_ratio_high=1.31
    )
    found = LIMITS.breaches(record)
    assert bool(found) == breached
    assert all(f"1.25 ({low} to 1.31), the limit is 1.2" in str(breach) for breach in found)


def test_obedience_has_a_lower_limit_and_null_breaches_nothing(new_record: Any) -> None:
    limits = Thresholds(models={"*": {"*": Threshold(obedience_pass_rate=0.5)}})
    assert limits.breaches(new_record(obedience_pass_rate=None)[0]) == []
    assert limits.breaches(new_record(obedience_pass_rate=0.5)[0]) == []
    assert len(limits.breaches(new_record(obedience_pass_rate=0.49)[0])) == 1


def test_the_shipped_file_is_valid_and_an_invalid_one_is_named(tmp_path: Path) -> None:
    shipped = load_thresholds(PROJECT_ROOT / "data" / "bench_thresholds.yaml")
    assert shipped.of("any", "q8_0").perplexity_ratio is not None
    path = tmp_path / "limits.yaml"
    path.write_text("models: {a: {b: {p96_ms: 4}}}", encoding="utf-8")
    with pytest.raises(InputError, match=r"limits\.yaml"):
        load_thresholds(path)


def test_obedience_breaches_its_limit_only_beyond_its_interval(new_record: Any) -> None:
    limits = Thresholds(models={"*": {"*": Threshold(obedience_pass_rate=0.6)}})
    # 12 of 24 is 31 to 69 %, 120 of 240 is 44 to 56 %.
    few, many = (
        new_record(obedience_pass_rate=0.5, obedience_prompts=prompts)[0] for prompts in (24, 240)
    )
    assert limits.breaches(few) == []
    (breach,) = limits.breaches(many)
    assert (breach.name, breach.value, breach.limit) == ("obedience_pass_rate", 0.5, 0.6)
