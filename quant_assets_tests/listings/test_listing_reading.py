"""Reading files: every fault is a rejected row with a reason, or an error with file and line."""

import codecs
import csv
import io
import json
import os
import resource
import signal
from pathlib import Path

import duckdb
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from quant_assets.errors import InputError, ResourceError
from quant_assets.listings.quarantine import QuarantineReason
from quant_assets.listings.reading import csv_rows
from quant_assets.listings.reading.files import read_raw
from quant_assets.listings.reading.records import MAX_LINE_CHARACTERS
from quant_assets.listings.stages import RawListings
from quant_assets.listings.store import ListingStore, ParseCache


def write(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def column(raw: RawListings, name: str) -> list[str | None]:
    sql = f"SELECT {name} FROM {raw.rows} ORDER BY position"
    return [value for (value,) in raw.workspace.query(sql)]


def rejected(raw: RawListings) -> list[tuple[int, str]]:
    sql = f"SELECT line_number, reason FROM {raw.rejected} ORDER BY 1"
    return raw.workspace.query(sql)


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
def test_delimiters_and_usual_header_names(tmp_path: Path, delimiter: str) -> None:
    header = delimiter.join(["Product Name", "Vendor", "Price (USD)", "Link", "stock"])
    row = delimiter.join(["L4 24GB", "shop", "2100", "https://x.example", "7"])
    raw = read_raw([write(tmp_path / "a.csv", f"{header}\n{row}\n")])
    assert column(raw, "title") == ["L4 24GB"]
    assert column(raw, "seller") == ["shop"]
    assert column(raw, "price_text") == ["2100"]
    assert column(raw, "currency") == ["USD"]
    assert column(raw, "url") == ["https://x.example"]
    assert json.loads(column(raw, "extra")[0] or "") == {"stock": "7"}


def test_an_hourly_header_states_the_unit(tmp_path: Path) -> None:
    raw = read_raw([write(tmp_path / "a.csv", "gpu,price_per_hour\nL4,0.7\n")])
    assert column(raw, "price_unit") == ["hour"]


@pytest.mark.parametrize(
    "encode",
    [
        lambda text: text.encode("utf-8-sig"),
        lambda text: text.encode("cp1252"),
        lambda text: codecs.BOM_UTF16_LE + text.encode("utf-16-le"),
    ],
    ids=["utf-8 with BOM", "cp1252", "utf-16"],
)
def test_encodings(tmp_path: Path, encode) -> None:  # type: ignore[no-untyped-def]
    raw = read_raw([write(tmp_path / "a.csv", encode("title;price\nTésla P40;99 €\n"))])
    assert column(raw, "title") == ["Tésla P40"]
    assert column(raw, "price_text") == ["99 €"]


def test_faulty_rows_are_rejected_and_the_others_kept(tmp_path: Path) -> None:
    content = (
        b"title,price\n"
        b"L4,1\n"  # 2
        b'A40,"2\n'  # 3: never closed
        b"T4,3\n"  # 4
        b"A\x0010,4\n"  # 5
        b"too,many,fields\n"  # 6
        b"\n"
        b'"A16,\n64GB",5\n'  # 8 and 9: one record
        + b"x"
        * (MAX_LINE_CHARACTERS * 3)  # 10
        + b",6\nL40S,7\n"  # 11
        b'"A2" used,8\n'  # 12
        b'A30,"9'  # 13: never closed at the end
    )
    raw = read_raw([write(tmp_path / "a.csv", content)])
    assert column(raw, "title") == ["L4", "T4", "A16,\n64GB", "L40S"]
    assert column(raw, "line_number") == [2, 4, 8, 11]
    assert rejected(raw) == [
        (3, QuarantineReason.BROKEN_QUOTES),
        (5, QuarantineReason.NUL_BYTE),
        (6, QuarantineReason.WRONG_FIELD_COUNT),
        (10, QuarantineReason.LINE_TOO_LONG),
        (12, QuarantineReason.BROKEN_QUOTES),
        (13, QuarantineReason.BROKEN_QUOTES),
    ]


def test_a_hundred_megabytes_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    with path.open("w") as stream:
        stream.write("title,price\nL4,1\n")
        for _ in range(100):
            stream.write("x" * 1_000_000)
        stream.write("\nT4,2\n")
    raw = read_raw([path])
    assert column(raw, "title") == ["L4", "T4"]
    assert rejected(raw) == [(3, QuarantineReason.LINE_TOO_LONG)]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", b"", "empty (line 1)"),
        ("a.csv", b"title,price\n", "no rows (after line 1)"),
        ("a.csv", b"colour,weight\nred,1\n", "no column with a title of the offer (line 1)"),
        ("a.csv", b"title\0price\nL4,1\n", "NUL byte in line 1"),
        ("a.csv", b'"title,price\nL4,1\n', "quote that is never closed (line 1)"),
        ("a.csv", b"title" + b",x" * 10_000 + b"\nL4\n", "has 10001 columns"),
        ("a.csv", "title,price\nL4,1\n".encode("utf-16-le"), "NUL byte in line 1"),
        ("a.json", b'[{"title": "L4"},\n{"title" "T4"}]', "not valid JSON (line 2)"),
        ("a.json", b'"L4"', "no list of listings (line 1)"),
        ("a.json", b"[" * 100_000, "not valid JSON (line 1)"),
        ("a.parquet", b"PAR1 but not really", "cannot be read as Parquet"),
        ("a.xlsx", b"x", "unknown extension"),
    ],
)
def test_an_unusable_file_is_one_error_with_its_name(
    tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    path = write(tmp_path / name, content)
    with pytest.raises(InputError) as caught:
        read_raw([path])
    assert message in caught.value.what
    assert str(path) in caught.value.what


def test_an_error_lists_the_columns_when_none_is_a_title(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="'colour', 'weight'"):
        read_raw([write(tmp_path / "a.csv", "colour;weight\nred;1\n")])


def test_a_faulty_file_among_several_is_one_rejected_row(tmp_path: Path) -> None:
    write(tmp_path / "good.csv", "title\nL4\n")
    write(tmp_path / "empty.csv", "")
    raw = read_raw([tmp_path])
    assert column(raw, "title") == ["L4"]
    assert rejected(raw) == [(1, QuarantineReason.UNREADABLE_FILE)]


def test_json_keeps_numbers_as_written_and_rejects_values_that_are_not_objects(
    tmp_path: Path,
) -> None:
    path = write(tmp_path / "a.json", '{"offers": [{"title": "L4", "price": 1200.50}, 7]}')
    raw = read_raw([path])
    assert column(raw, "price_text") == ["1200.50"]
    assert rejected(raw) == [(2, QuarantineReason.NOT_AN_OBJECT)]


def test_json_lines_reject_one_broken_line(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", '{"title": "L4"}\n{"title": \n{"title": "T4"}\n')
    raw = read_raw([path])
    assert column(raw, "title") == ["L4", "T4"]
    assert rejected(raw) == [(2, QuarantineReason.NOT_AN_OBJECT)]


def test_parquet_gives_the_same_rows_as_csv(tmp_path: Path) -> None:
    source = write(tmp_path / "a.csv", "title,price,note\nL4,1.5,x\nT4,,\n")
    with duckdb.connect() as connection:
        connection.execute(
            "COPY (FROM read_csv(?)) TO ? (FORMAT parquet)",
            [str(source), str(tmp_path / "a.parquet")],
        ).fetchall()
    raws = [read_raw([tmp_path / name]) for name in ("a.csv", "a.parquet")]
    for name in ("title", "price_text", "extra::JSON->>'note'"):
        assert column(raws[0], name) == column(raws[1], name)


def test_an_unchanged_file_is_not_parsed_again(tmp_path: Path) -> None:
    inputs, cache = tmp_path / "in", ParseCache(tmp_path / "snapshots")
    inputs.mkdir()
    write(inputs / "a.csv", "title\nL4\n")
    write(inputs / "b.csv", "title\nT4\n")
    assert [file.parsed for file in read_raw([inputs], cache=cache).files] == [True, True]
    write(inputs / "b.csv", "title\nT4\nA2\n")
    again = read_raw([inputs], cache=cache)
    assert [file.parsed for file in again.files] == [False, True]
    assert column(again, "title") == ["L4", "T4", "A2"]


def test_equal_files_keep_their_own_rows(tmp_path: Path) -> None:
    for name in ("a.csv", "b.csv"):
        write(tmp_path / name, "title\nL4\n")
    raw = read_raw([tmp_path])
    assert column(raw, "source_file") == ["a.csv", "b.csv"]
    assert len(set(column(raw, "row_id"))) == 2


def test_row_ids_are_stable(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", "title\nL4\nL4\n")
    first, second = (column(read_raw([path]), "row_id") for _ in range(2))
    assert first == second
    assert len(set(first)) == 2


def test_save_and_load_keep_the_tables(tmp_path: Path) -> None:
    raw = read_raw([write(tmp_path / "a.csv", "title,price\nL4,1\nT4\n")])
    store = ListingStore(tmp_path / "kept")
    store.save(raw)
    loaded = store.load(RawListings)
    assert loaded.counts == raw.counts == {"rows": 1, "rejected": 1}
    assert column(loaded, "row_id") == column(raw, "row_id")
    with pytest.raises(InputError, match=r"no rows\.parquet"):
        ListingStore(tmp_path / "elsewhere").load(RawListings)


@pytest.mark.parametrize("kept", [True, False])
def test_rows_of_a_large_file_have_their_line_numbers(tmp_path: Path, kept: bool) -> None:
    lines = "".join(f"L4 {line % 7},{line}\n" for line in range(2, 300_002))
    path = write(tmp_path / "a.csv", f"title,price\n{lines}")
    raw = read_raw([path], cache=ParseCache(tmp_path / "snapshots") if kept else None)
    assert raw.counts == {"rows": 300_000, "rejected": 0}
    moved = f"SELECT count(*) FROM {raw.rows} WHERE price_text != line_number::VARCHAR"
    assert raw.workspace.query(moved) == [(0,)]
    snapshots = list(tmp_path.glob("snapshots/*.parquet"))
    assert (raw.files[0].place == str(snapshots[0])) if kept else not snapshots


cells = st.text(st.characters(codec="utf-8", exclude_characters="\0\r"), max_size=12)


@given(st.lists(st.tuples(cells, cells, cells), min_size=1, max_size=8))
@example([("L4", "1", space) for space in ("\xa0", "\u2007 ", "\u3000", "\t", "\u200b")])
@settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))
def test_both_csv_parsers_read_the_same_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows: list[tuple[str, str, str]]
) -> None:
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n", quoting=csv.QUOTE_ALL)
    writer.writerows([("title", "price", "note"), *rows])
    path = write(tmp_path / "a.csv", buffer.getvalue())
    row = "[line_number::VARCHAR, title, price_text, extra]"
    fast = column(read_raw([path]), row)
    with monkeypatch.context() as patch:
        patch.setattr(csv_rows, "_copy_clean_csv", lambda *_: False)
        slow = column(read_raw([path]), row)
    assert fast == slow
    assert len(fast) == len(rows)


@given(st.binary(max_size=300))
@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
def test_any_bytes_after_the_header_are_rows_or_rejected(tmp_path: Path, body: bytes) -> None:
    path = write(tmp_path / "a.csv", b"title,price\n" + body + b"\nL4 24GB,1\n")
    raw = read_raw([path])
    counts = raw.counts
    lines = [line for line in body.split(b"\n") if line.strip()]
    records = counts["rows"] + counts["rejected"]
    assert 1 <= records <= 1 + sum(line.count(b"\r") + 1 for line in lines)


def test_a_row_that_is_not_valid_text_is_rejected(tmp_path: Path) -> None:
    path = write(
        tmp_path / "a.json",
        r'[{"title": "L4 \ud83d"}, {"title": "T4", "\udc00": 1}, {"title": "A2"}]',
    )
    raw = read_raw([path])
    assert column(raw, "title") == ["A2"]
    unreadable = QuarantineReason.UNREADABLE_ROW
    assert rejected(raw) == [(1, unreadable), (2, unreadable)]
    assert raw.workspace.query(f"SELECT title FROM {raw.rejected} WHERE line_number = 1") == [
        ("L4 \\ud83d",)
    ]


def test_a_wrong_separator_line_is_forgiven(tmp_path: Path) -> None:
    raw = read_raw([write(tmp_path / "a.csv", "sep=:\ntitle;price\nL4;1\n")])
    assert column(raw, "price_text") == ["1"]


def test_line_separators_inside_json_text_do_not_end_a_line(tmp_path: Path) -> None:
    raw = read_raw([write(tmp_path / "a.jsonl", '{"title": "L4\u2028\x85x"}\n{"title": "T4"}\r\n')])
    assert column(raw, "title") == ["L4\u2028\x85x", "T4"]


def test_a_file_is_read_by_its_own_name_and_not_as_a_pattern(tmp_path: Path) -> None:
    write(tmp_path / "offers1.csv", "title\nL4\n")
    names = ["offers[1].csv", "offers?.csv", "of*\\[1].csv", os.fsdecode(b"offers\xff.csv")]
    home = tmp_path / "x=1" / "[a] 'b\" *"
    for name in names:
        path = write(tmp_path / name, "title\nT4\n")
        for cache in (None, ParseCache(home)):
            raw = read_raw([path], cache=cache)
            assert column(raw, "title") == ["T4"], name
    assert column(raw, "source_file") == ["offers\\xff.csv"]


@pytest.mark.parametrize("damage", [b"", b"PAR1", None])
def test_a_damaged_snapshot_is_rebuilt(tmp_path: Path, damage: bytes | None) -> None:
    path, folder = write(tmp_path / "a.csv", "title,price\nL4,1\n"), tmp_path / "snapshots"
    cache = ParseCache(folder)
    place = Path(read_raw([path], cache=cache).files[0].place)
    whole = place.read_bytes()
    flipped = bytes([*whole[:30], whole[30] ^ 1, *whole[31:]])
    place.write_bytes(flipped if damage is None else damage)
    again = read_raw([path], cache=cache)
    assert (again.files[0].parsed, column(again, "price_text")) == (True, ["1"])
    assert len(list(folder.iterdir())) == 1


def test_a_damaged_stage_is_one_error_with_its_name(tmp_path: Path) -> None:
    raw = read_raw([write(tmp_path / "a.csv", "title,price\nL4,1\n")])
    store = ListingStore(tmp_path / "kept")
    store.save(raw)
    rows = store.snapshot("raw_listings")
    whole = rows.read_bytes()
    with duckdb.connect() as connection:
        connection.execute(
            "COPY (SELECT 1 AS a) TO ? (FORMAT parquet)", [str(tmp_path / "x.parquet")]
        )
    for content in (
        b"",
        whole[: len(whole) // 2],
        b"x" * 99,
        (tmp_path / "x.parquet").read_bytes(),
    ):
        rows.write_bytes(content)
        with pytest.raises(InputError, match=r"rows\.parquet is damaged"):
            store.load(RawListings)


def test_a_failed_write_leaves_the_previous_stage_intact(tmp_path: Path) -> None:
    raw = read_raw([write(tmp_path / "a.csv", "title\nL4\n")])
    store = ListingStore(tmp_path / "kept")
    store.save(raw)
    rows = store.snapshot("raw_listings")
    before = rows.read_bytes()
    more = read_raw([write(tmp_path / "b.csv", "title\n" + "L4 x\n" * 3000)])
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    former = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))
    try:
        with pytest.raises(ResourceError, match="cannot be written"):
            store.save(more)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, former)
    assert rows.read_bytes() == before
    assert len(list(rows.parent.iterdir())) == 2
