"""All stages together: no row is lost or counted twice, and the figures are correct."""

import csv
import json
import shutil
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import duckdb
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quant_assets.errors import CheckFailed, InputError
from quant_assets.gpus.registry import load_registry
from quant_assets.listings import workspace
from quant_assets.listings.enrichment import enrich
from quant_assets.listings.matching import processes
from quant_assets.listings.matching.matcher import TitleMatcher
from quant_assets.listings.matching.processes import TitleMatching
from quant_assets.listings.normalization import normalize
from quant_assets.listings.pipeline import PipelineOptions, run_pipeline
from quant_assets.listings.prices.exchange_rates import load_exchange_rates
from quant_assets.listings.quarantine import QuarantineReason
from quant_assets.listings.reading.files import read_raw
from quant_assets.listings.stages import EnrichedListings, NormalizedListings, check_conservation
from quant_assets.listings.store import ListingStore
from quant_assets.listings.workspace import Workspace
from quant_assets.settings import PROJECT_ROOT

REGISTRY = load_registry()
METRIC = PipelineOptions(quantize_metric=True)
HEADER = "title,seller,price,currency,url\n"


def write(path: Path, content: str) -> Path:
    path.write_text(content, encoding="utf-8")
    return path


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def test_the_sample_is_matched_and_conserved() -> None:
    result = run_pipeline([PROJECT_ROOT / "data" / "listings"], options=METRIC)
    assert result.counts["rows"] >= 60
    assert result.counts["collapsed_duplicates"] >= 2
    assert result.normalized.match_rate is not None and result.normalized.match_rate > 0.7
    names = result.enriched.frame()["canonical_name"]
    assert set(names) <= set(REGISTRY.by_name)


def test_figures_and_prices_of_one_offer(tmp_path: Path) -> None:
    source = write(tmp_path / "in.csv", HEADER + '8x A100 SXM4 80GB,s,"80.000,00 €",,u\n')
    result = run_pipeline([source], tmp_path / "out.csv", METRIC)
    (row,) = rows_of(tmp_path / "out.csv")
    usd = 80_000 * load_exchange_rates().usd_for_one("EUR")
    gpu = REGISTRY.get("A100 SXM4 80GB")
    assert row["canonical_name"] == gpu.canonical_name
    assert (row["gpu_count"], row["currency"], row["price_kind"]) == ("8", "EUR", "purchase")
    assert float(row["price_usd"]) == pytest.approx(usd)
    assert float(row["price_per_gpu_usd"]) == pytest.approx(usd / 8)
    assert float(row["price_per_gb_usd"]) == pytest.approx(usd / 640)
    assert float(row["vram_gb"]) == 80 and float(row["total_vram_gb"]) == 640
    assert float(row["memory_bandwidth_gb_s"]) == gpu.memory_bandwidth_gb_s
    assert json.loads(row["quantization_capacity"]) == {"7b": 22, "13b": 12, "70b": 2}
    assert row["quantization_capacity.70b"] == "2"
    assert result.counts["enriched"] == 1


def test_a_price_per_gpu_is_not_divided(tmp_path: Path) -> None:
    source = write(tmp_path / "in.csv", "gpu,gpu_count,price,price_unit\nL4 24GB,4,0.7,GPU-hour\n")
    frame = run_pipeline([source]).enriched.frame()
    assert frame["price_per_gpu_usd"][0] == pytest.approx(0.7)
    assert frame["price_usd"][0] == pytest.approx(2.8)


def test_capacity_columns_only_with_the_flag_and_suffixed_by_bits(tmp_path: Path) -> None:
    source = write(tmp_path / "in.csv", "title\nL4\n")

    def columns(options: PipelineOptions) -> list[str]:
        frame = run_pipeline([source], options=options).enriched.frame()
        return [name for name in frame.columns if name.startswith("quantization_capacity")]

    assert columns(PipelineOptions()) == []
    assert columns(METRIC) == [
        "quantization_capacity",
        *(f"quantization_capacity.{size}" for size in ("7b", "13b", "70b")),
    ]
    both = columns(PipelineOptions(quantize_metric=True, bits=(4, 8)))
    assert "quantization_capacity.7b_4bit" in both and "quantization_capacity.7b_8bit" in both


def test_columns_of_the_input_are_not_replaced_without_force(tmp_path: Path) -> None:
    source = write(tmp_path / "in.csv", "title,quantization_capacity.7b,note\nL4,99,mine\n")
    with pytest.raises(
        InputError, match=r"already has the column 'quantization_capacity\.7b'.*--force"
    ):
        run_pipeline([source], options=METRIC)
    forced = PipelineOptions(quantize_metric=True, force=True)
    run_pipeline([source], tmp_path / "out.csv", forced)
    (row,) = rows_of(tmp_path / "out.csv")
    assert row["quantization_capacity.7b"] == "6"
    assert row["note"] == "mine"


def test_duplicates_are_collapsed_into_the_first_and_counted(tmp_path: Path) -> None:
    offer = "L4 24GB,shop,$2000,,https://x.example/1\n"
    other_url = "L4 24GB,shop,$2000,,https://x.example/2\n"
    other_price = "L4 24GB,shop,$2001,,https://x.example/1\n"
    same_card = "NVIDIA Tesla L4,shop,$2000,,https://x.example/1\n"
    no_url = "L4 24GB,shop,$2000,,\n"
    no_url_other_title = "NVIDIA L4,shop,$2000,,\n"
    source = write(
        tmp_path / "in.csv",
        HEADER
        + offer
        + other_url
        + other_price
        + same_card
        + offer
        + no_url * 2
        + no_url_other_title,
    )
    result = run_pipeline([source])
    frame = result.enriched.frame()
    assert dict(zip(frame["line_number"], frame["collapsed_duplicates"], strict=True)) == {
        2: 2,
        3: 0,
        4: 0,
        7: 1,
        9: 0,
    }
    assert result.counts["collapsed_duplicates"] == 3


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (",shop,$1,,", QuarantineReason.MISSING_TITLE),
        ("L4,shop,-1,,", QuarantineReason.NEGATIVE_PRICE),
        ("L4,shop,999999999,,", QuarantineReason.ABSURD_PRICE),
        ("L4,shop,$1,,", QuarantineReason.ABSURD_PRICE),
        ("L4,shop,$2000,EUR,", QuarantineReason.CURRENCY_CONFLICT),
    ],
)
def test_unusable_rows_are_quarantined_with_their_reason(
    tmp_path: Path, row: str, reason: QuarantineReason
) -> None:
    result = run_pipeline([write(tmp_path / "in.csv", f"{HEADER}{row}\n")])
    assert result.normalized.quarantine_counts == {reason.value: 1}
    explanation = result.normalized.quarantined_frame()["explanation"][0]
    assert explanation == reason.words


@pytest.mark.parametrize("count", ["0", "-2", "1.5", "many", "99999", "4", "nan", "inf", "1e300"])
def test_an_invalid_gpu_count_is_refused(tmp_path: Path, count: str) -> None:
    source = write(tmp_path / "in.csv", f"title,gpu_count,price\n8x L4,{count},9000\n")
    assert run_pipeline([source]).normalized.quarantine_counts == {"invalid_gpu_count": 1}


def test_formulas_are_neutralized_in_csv_only(tmp_path: Path) -> None:
    source = write(
        tmp_path / "in.csv",
        "title,seller,price,=note\n"
        "L4 24GB,\"=cmd|' /C calc'!A0\",2000,+1\n"
        '"=HYPERLINK(""http://x.example"")",@shop,2000,-1\n',
    )
    run_pipeline([source], tmp_path / "out.csv")
    (row,) = rows_of(tmp_path / "out.csv")
    assert row["seller"] == "'=cmd|' /C calc'!A0"
    assert row["'=note"] == "'+1"
    (aside,) = rows_of(tmp_path / "out.quarantine.csv")
    assert aside["title"].startswith("'=HYPERLINK")
    assert aside["seller"] == "'@shop"
    run_pipeline([source], tmp_path / "out.json")
    assert json.loads((tmp_path / "out.json").read_text())[0]["seller"] == "=cmd|' /C calc'!A0"


def test_an_input_column_named_like_a_stage_column_is_neutralized(tmp_path: Path) -> None:
    names = ("reason", "quantization_capacity")
    cells = ",".join("=1+1" for _ in names)
    source = write(tmp_path / "in.csv", f"title,price,{','.join(names)}\nL4 24GB,2000,{cells}\n")
    run_pipeline([source], tmp_path / "out.csv")
    (row,) = rows_of(tmp_path / "out.csv")
    assert {name: row[name] for name in names} == dict.fromkeys(names, "'=1+1")


def test_sql_in_texts_and_headers_stays_text(tmp_path: Path) -> None:
    hostile = "L4'; DROP TABLE x; --"
    label = "a\"b'; SELECT 1 --/~"
    source = tmp_path / "in.csv"
    with source.open("w", newline="") as stream:
        csv.writer(stream).writerows([("title", "seller", label), ("L4 24GB", hostile, hostile)])
    run_pipeline([source], tmp_path / "out.csv", METRIC)
    (row,) = rows_of(tmp_path / "out.csv")
    assert row["seller"] == hostile
    assert row[label] == hostile


def test_rows_come_out_in_the_order_of_the_files(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    for name in ("b.csv", "a.csv"):
        body = "".join(f"L4 24GB,{name},${1000 + number},,\n" for number in range(3000))
        write(tmp_path / name, HEADER + body)
    output = tmp_path_factory.mktemp("out") / "out.csv"
    run_pipeline([tmp_path], output, METRIC)
    found = [(row["source_file"], int(row["line_number"])) for row in rows_of(output)]
    expected = [(name, line) for name in ("a.csv", "b.csv") for line in range(2, 3002)]
    assert found == expected


@pytest.mark.parametrize("suffix", [".csv", ".json", ".jsonl", ".parquet"])
def test_outputs_by_extension_hold_the_same_rows(tmp_path: Path, suffix: str) -> None:
    source = write(tmp_path / "in.csv", HEADER + "L4,a,$2000,,\nT4,b,$600,,\nfoo,c,$1,,\n")
    output = tmp_path / "made" / f"out{suffix}"
    result = run_pipeline([source], output, METRIC)
    assert result.quarantine == output.with_name(f"out.quarantine{suffix}")
    with duckdb.connect() as connection:
        found = connection.execute(
            f"SELECT canonical_name, price_usd FROM '{output}' ORDER BY line_number"
        ).fetchall()
    assert found == [("L4", 2000.0), ("Tesla T4", 600.0)]


def test_an_output_inside_an_input_is_refused(tmp_path: Path) -> None:
    source = write(tmp_path / "in.csv", "title\nL4\n")
    for inputs, output in (([source], source), ([tmp_path], tmp_path / "out.csv")):
        with pytest.raises(InputError, match="lies in the input"):
            run_pipeline(inputs, output)
    assert source.read_text() == "title\nL4\n"
    with pytest.raises(InputError, match="unknown extension"):
        run_pipeline([source], tmp_path / "out.xlsx")


def test_saved_stages_load_unchanged(tmp_path: Path) -> None:
    source = write(tmp_path / "in.csv", HEADER + "L4,a,$2000,,\nL4,a,$2000,,\nfoo,c,$1,,\n")
    raw = read_raw([source])
    normalized = normalize(raw, REGISTRY)
    store = ListingStore(tmp_path / "kept")
    store.save(normalized)
    loaded = store.load(NormalizedListings)
    enriched = enrich(loaded, REGISTRY)
    store.save(enriched)
    kept = store.load(EnrichedListings)
    counts = check_conservation(raw, loaded, kept)
    assert (counts["enriched"], counts["quarantined"], counts["collapsed_duplicates"]) == (1, 1, 1)
    assert kept.frame()["quantization_capacity.7b"].tolist() == [6]


def test_a_lost_row_is_detected(tmp_path: Path) -> None:
    raw = read_raw([write(tmp_path / "in.csv", "title\nL4\nT4\nfoo\n")])
    normalized = normalize(raw, REGISTRY)
    kept = normalized.workspace.keep(
        "kept", f"SELECT * FROM {normalized.rows} WHERE canonical_name != 'L4'", rows=2
    )
    normalized = replace(normalized, rows=kept)
    with pytest.raises(CheckFailed, match="3 rows came in and 2 are accounted for"):
        check_conservation(raw, normalized)


titles = st.sampled_from(
    ["L4", "2x RTX 3090 24GB", "RTX 6000", "H100 80GB", "heat sink for A100", "RTX 4090", "", "foo"]
) | st.text(max_size=30)
prices = st.sampled_from(["$2,000", "1.200", "-1", "", "2 €/h", "1e9", "¥5"]) | st.text(max_size=10)
offers = st.tuples(
    titles,
    st.sampled_from(["a", "b"]),
    prices,
    st.sampled_from(["", "USD", "EUR", "?"]),
    st.sampled_from(["", "https://x.example"]),
)


@given(st.lists(offers, min_size=1, max_size=25), st.binary(max_size=40))
@settings(max_examples=25, deadline=None)
def test_rows_are_conserved_for_any_content(rows: list[tuple[str, ...]], rubbish: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "in.csv"
        with source.open("w", newline="", encoding="utf-8", errors="replace") as stream:
            writer = csv.writer(stream, lineterminator="\n")
            writer.writerow(HEADER.strip().split(","))
            writer.writerows(rows)
        with source.open("ab") as binary:
            binary.write(rubbish.replace(b"\n", b"").replace(b"\r", b"") + b"\n")
        result = run_pipeline([source], options=METRIC)
        counts = result.counts
        assert counts["rows"] + counts["rejected"] == (
            counts["enriched"] + counts["quarantined"] + counts["collapsed_duplicates"]
        )
        assert counts["rows"] + counts["rejected"] >= len(
            [row for row in rows if "\0" not in "".join(row)]
        )


TITLES = [f"{gpu.canonical_name} {word}" for gpu in REGISTRY.all for word in ("new", "used #7")]


@pytest.mark.parametrize("interpreter", [sys.executable, shutil.which("false")])
def test_parallel_matching_gives_the_same_matches_even_if_a_process_dies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, interpreter: str
) -> None:
    monkeypatch.setattr(processes, "WORTH_A_PROCESS", 100)
    monkeypatch.setattr(processes.os, "cpu_count", lambda: 3)
    monkeypatch.setattr(processes.sys, "executable", interpreter)
    matching = TitleMatching(TITLES, REGISTRY, tmp_path)
    assert sorted(tmp_path.glob("titles_*.json")) == [
        tmp_path / "titles_1.json",
        tmp_path / "titles_2.json",
    ]
    alone = TitleMatcher(REGISTRY)
    assert {match.title: match for match in matching.matches()} == {
        title: alone.match(title) for title in TITLES
    }


def test_rows_beyond_the_memory_limit_give_the_same_output(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = PROJECT_ROOT / "data" / "listings"
    run_pipeline([source], tmp_path / "memory.csv", METRIC)
    monkeypatch.setattr(workspace, "ROWS_IN_MEMORY", 0)
    result = run_pipeline([source], tmp_path / "disk.csv", METRIC)
    assert list(Path(result.enriched.workspace.folder.name).glob("classified*.parquet"))
    for name in ("{}.csv", "{}.quarantine.csv"):
        memory, disk = (tmp_path / name.format(kind) for kind in ("memory", "disk"))
        assert disk.read_bytes() == memory.read_bytes()


def test_no_progress_bar_goes_to_standard_output(tmp_path: Path) -> None:
    raw = read_raw([write(tmp_path / "in.csv", "title\nL4\n")])
    shown = "SELECT current_setting('enable_progress_bar')"
    assert raw.workspace.query(shown) == [(False,)]


def test_statements_do_not_grow_with_the_columns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Planning time grows faster than linearly, so a column may add only its name to a statement."""
    statements: list[str] = []
    plain, copied = Workspace.query, workspace.copy_to

    def query(self: Workspace, sql: str, parameters: Any = ()) -> list[tuple[Any, ...]]:
        statements.append(sql)
        return plain(self, sql, parameters)

    def copy_to(connection: Any, sql: str, *rest: Any) -> int:
        statements.append(sql)
        return copied(connection, sql, *rest)

    monkeypatch.setattr(Workspace, "query", query)
    monkeypatch.setattr(workspace, "copy_to", copy_to)
    lengths, calls = {}, {}
    for columns in (100, 400):
        names = [f"x{number}" for number in range(columns)]
        source = write(
            tmp_path / "in.csv",
            f"title,price,{','.join(names)}\n" + f"L4 24GB,2000,{','.join(names)}\n" * 5,
        )
        statements.clear()
        run_pipeline([source], tmp_path / "out.csv", METRIC)
        lengths[columns] = sum(map(len, statements))
        calls[columns] = sum(sql.count("regexp_") for sql in statements)
        (row, *_) = rows_of(tmp_path / "out.csv")
        assert [row[name] for name in names] == names
    assert calls[400] == calls[100]
    assert lengths[400] - lengths[100] < 300 * 50
