import csv
from pathlib import Path
from typing import Any

import pytest

from quant_assets.bench.collect import collect_csv
from quant_assets.bench.compare import compare, open_side
from quant_assets.bench.results import ResultStore
from quant_assets.errors import InputError

SLOW, FAST = [20.0 + n / 10 for n in range(20)], [10.0 + n / 20 for n in range(20)]


def test_two_variants_are_paired_by_batch_size(tmp_path: Path, new_record: Any) -> None:
    store = ResultStore(tmp_path)
    for batch_size in (1, 4):
        store.append(*new_record(SLOW, variant="slow", batch_size=batch_size))
    store.append(*new_record(FAST, variant="fast", batch_size=4))
    (only,) = compare(open_side("slow", store), open_side("fast", store))
    assert (only.variant_a, only.variant_b, only.batch_size) == ("slow", "fast", 4)
    assert only.run_time.ratio == pytest.approx(2.0)
    assert only.run_time.low <= 2.0 <= only.run_time.high
    assert only.time_to_first_token.ratio == 1.0
    assert only.token_time is not None and only.token_time.ratio > 2.0


def test_two_folders_are_paired_by_variant_and_batch_size(tmp_path: Path, new_record: Any) -> None:
    before, after = ResultStore(tmp_path / "before"), ResultStore(tmp_path / "after")
    for store, times in ((before, SLOW), (after, FAST)):
        for variant in ("x", "y"):
            store.append(*new_record(times, variant=variant))
    found = compare(
        open_side(str(after.folder), ResultStore(tmp_path)),
        open_side(str(before.folder), ResultStore(tmp_path)),
    )
    assert [(item.variant_a, item.variant_b) for item in found] == [("x", "x"), ("y", "y")]
    assert all(item.run_time.high < 1 for item in found)


def test_the_latest_record_of_a_cell_counts(tmp_path: Path, new_record: Any) -> None:
    store = ResultStore(tmp_path)
    store.append(*new_record(SLOW, variant="a"))
    store.append(*new_record(FAST, variant="a"))
    store.append(*new_record(FAST, variant="b"))
    (only,) = compare(open_side("a", store), open_side("b", store))
    assert only.run_time.ratio == 1.0


def test_unequal_settings_are_not_compared(tmp_path: Path, new_record: Any) -> None:
    from quant_assets.bench.settings import BenchSettings

    store = ResultStore(tmp_path)
    store.append(*new_record(FAST, variant="a"))
    other = BenchSettings(prompt_tokens=9, generated_tokens=4)
    store.append(*new_record(FAST, variant="b", settings=other))
    with pytest.raises(InputError, match="cannot be compared"):
        compare(open_side("a", store), open_side("b", store))
    with pytest.raises(InputError, match="nothing to compare"):
        open_side("c", store)


def test_records_of_one_host_are_compared_with_each_other(tmp_path: Path, new_record: Any) -> None:
    store = ResultStore(tmp_path)
    for host, times in (("one", SLOW), ("two", FAST)):
        store.append(*new_record(times, variant="a", machine={"host_id": host}))
    store.append(*new_record(FAST, variant="b", machine={"host_id": "one"}))
    (only,) = compare(open_side("a", store), open_side("b", store))
    assert only.run_time.ratio == pytest.approx(2.0) and only.same_host is True
    assert (only.processor, only.threads) == ("a processor", 2)
    assert (only.prompt_tokens, only.generated_tokens) == (8, 4)


@pytest.mark.parametrize(("host", "same"), [("three", False), (None, None)])
def test_equal_processors_of_different_hosts_are_compared_and_flagged(
    tmp_path: Path, new_record: Any, host: str | None, same: bool | None
) -> None:
    store = ResultStore(tmp_path)
    store.append(*new_record(SLOW, variant="a", machine={"host_id": "one"}))
    store.append(*new_record(FAST, variant="a", machine={"host_id": "two"}))
    store.append(*new_record(FAST, variant="b", machine={"host_id": host}))
    (only,) = compare(open_side("a", store), open_side("b", store))
    assert only.run_time.ratio == 1.0, "the newest of each side"
    assert only.same_host is same


def test_different_processors_are_not_compared(tmp_path: Path, new_record: Any) -> None:
    store = ResultStore(tmp_path)
    store.append(*new_record(SLOW, variant="a"))
    store.append(*new_record(FAST, variant="b", machine={"cpu_name": "another processor"}))
    with pytest.raises(InputError, match="cannot be compared"):
        compare(open_side("a", store), open_side("b", store))


def test_records_are_collected_into_one_csv(tmp_path: Path, new_record: Any) -> None:
    store = ResultStore(tmp_path / "results")
    for variant in ("x", "y"):
        store.append(*new_record(FAST, variant=variant))
    output = tmp_path / "summary.csv"
    assert collect_csv(store.folder, output) == 2
    with output.open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [row["variant"] for row in rows] == ["x", "y"]
    assert float(rows[0]["p50_ms"]) == pytest.approx(10.475)
    assert rows[0]["peak_vram_bytes"] == ""
    assert list(rows[0])[:13] == [
        "model", "variant", "batch_size", "warmups", "runs", "timestamp", "p50", "p95", "peak_rss",
        "load_time_ms", "command_duration_ms", "obedience_pass_rate", "token_throughput",
    ]  # fmt: skip
    assert rows[0]["p50"] == rows[0]["p50_ms"] and rows[0]["p95"] == rows[0]["p95_ms"]
    assert rows[0]["token_throughput"] == rows[0]["decode_tokens_per_s"] != ""
    assert rows[0]["peak_rss"] == "200000000" and rows[0]["obedience_pass_rate"] == ""
    with pytest.raises(InputError, match="no benchmark records"):
        collect_csv(tmp_path / "empty", output)
