"""Damaged listing files: either every row is accounted for, or the file is refused."""

import csv
import io
import json
import re
from collections.abc import Callable
from itertools import count
from pathlib import Path

import duckdb
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quant_assets.errors import InputError
from quant_assets.gpus.registry import load_registry
from quant_assets.listings.pipeline import PipelineOptions, run_pipeline
from quant_assets.listings.reading import files
from quant_assets.listings.store import ParseCache
from quant_assets.listings.workspace import Workspace
from quant_assets_tests.mutation import HOSTILE_TOKENS, bounded, fuzz_settings, mutated

pytestmark = pytest.mark.fuzz

HEADER = ("title", "price", "currency", "seller", "url", "note")
ROWS = (
    ("NVIDIA L4 24GB", "2,500", "USD", "shop", "https://shop.example/1", "x"),
    ("H100 80GB PCIe", "2.49/h", "USD", "clôud", "", ""),
    ("Tesla P40 24G", "199", "EUR", "auction", "u", "n"),
    ("heat sink for A100", "-5", "", "", "", ""),
)
TOKENS = (
    *HOSTILE_TOKENS, b"\\ud83d", b"\\u0000", b"\xed\xa0\xbd", b"\r\n", b"\xe2\x80\xa8", b'"\n', b'""',
    b"\t", b"|", b"1e400", b"," * 200, b'"L4' * 50, b"\xff\xfe\x00\x00",
)  # fmt: skip


def csv_bytes(delimiter: str, encoding: str = "utf-8", end: str = "\n", **options: int) -> bytes:
    text = io.StringIO()
    csv.writer(text, delimiter=delimiter, lineterminator=end, **options).writerows([HEADER, *ROWS])
    return text.getvalue().encode(encoding)


def parquet_bytes(folder: Path) -> list[bytes]:
    values = ", ".join(str(row) for row in ROWS)
    texts = f"SELECT * FROM (VALUES {values}) AS t({', '.join(HEADER)})"
    types = (
        f"SELECT *, 1.5::DECIMAL(9, 2) AS d, TIMESTAMPTZ '2026-01-01 00:00:00+00' AS at, "
        f"[1, NULL] AS l, {{'a': 1}} AS s, 'x'::BLOB AS b, MAP {{1: 2}} AS m, 'nan'::DOUBLE AS f, "
        f"INTERVAL 1 DAY AS i, true AS t, NULL AS n FROM ({texts})"
    )
    made = []
    with duckdb.connect() as connection:
        for query in (texts, types):
            for codec in ("uncompressed", "snappy"):
                path = folder / "made.parquet"
                copy = f"COPY ({query}) TO ? (FORMAT parquet, COMPRESSION {codec})"
                connection.execute(copy, [str(path)]).fetchall()
                made.append(path.read_bytes())
    return made


OBJECTS = [dict(zip(HEADER, row, strict=True)) for row in ROWS]
OBJECTS[0] |= {"price": 2500.5, "note": {"a": [1, None, True]}}  # type: ignore[dict-item]
ORIGINALS: dict[str, Callable[[Path], list[bytes]]] = {
    "csv": lambda _: [
        csv_bytes(","),
        csv_bytes(";", "utf-8-sig"),
        csv_bytes("\t", "utf-16"),
        csv_bytes("|", "cp1252"),
        csv_bytes(",", end="\r\n", quoting=csv.QUOTE_ALL),
        b"sep=;\n" + csv_bytes(";"),
    ],
    "json": lambda _: [
        json.dumps(OBJECTS).encode(),
        json.dumps({"fetched_at": "2026-01-01", "offers": OBJECTS}, ensure_ascii=False).encode(),
        json.dumps(OBJECTS, indent=1).encode("utf-16"),
    ],
    "jsonl": lambda _: [
        b"\n".join(json.dumps(row).encode() for row in OBJECTS),
        b"\r\n".join(json.dumps(row, ensure_ascii=False).encode() for row in OBJECTS),
    ],
    "parquet": parquet_bytes,
}


def rows_of(kind: str, path: Path, data: bytes) -> range:
    """The possible numbers of rows, counted independently of the reader."""
    text = data.decode("utf-8-sig", errors="replace")
    if kind == "csv":
        return range(1, len(re.split(r"\r\n|\r|\n", data.decode("latin-1"))) + 1)
    if kind == "jsonl" and not data.startswith((b"\xff\xfe", b"\xfe\xff")):
        lines = [line for line in re.split(r"\r\n|\r|\n", text) if line.strip()]
        return range(len(lines), len(lines) + 1)
    if kind == "parquet":
        with duckdb.connect() as connection:
            (number,) = connection.execute(
                "SELECT count(*) FROM read_parquet(?)", [str(path)]
            ).fetchall()[0]
        return range(number, number + 1)
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return range(1, len(data))
    if isinstance(value, dict):
        lists = [item for item in value.values() if isinstance(item, list)]
        value = lists[0] if len(lists) == 1 else [value]
    return range(len(value), len(value) + 1)


@pytest.mark.parametrize("kind", ORIGINALS)
def test_a_damaged_file_is_read_whole_or_refused(kind: str, tmp_path: Path) -> None:
    workspace, numbers = Workspace.create(), count()
    cache = ParseCache(tmp_path / "parsed")

    @fuzz_settings(250 if kind == "parquet" else 420)
    @given(mutated(ORIGINALS[kind](tmp_path), TOKENS))
    def check(data: bytes) -> None:
        path = tmp_path / f"{next(numbers)}.{kind}"
        path.write_bytes(data)
        try:
            with bounded():
                read = files._read_file(workspace, path.name, path, cache, "rows")
        except InputError:
            return
        finally:
            for made in tmp_path.glob("parsed/*"):
                made.unlink()
        assert read.rows + read.rejected in rows_of(kind, path, data)
        path.unlink()

    check()


@pytest.mark.parametrize("kind", ORIGINALS)
def test_the_rows_of_a_damaged_file_are_conserved(kind: str, tmp_path: Path) -> None:
    registry, numbers = load_registry(), count()
    options = PipelineOptions(quantize_metric=True, force=True)

    @fuzz_settings(15)
    @given(
        mutated(ORIGINALS[kind](tmp_path), TOKENS), st.sampled_from((".csv", ".json", ".parquet"))
    )
    def check(data: bytes, suffix: str) -> None:
        folder = tmp_path / str(next(numbers))
        folder.mkdir()
        (folder / f"in.{kind}").write_bytes(data)
        try:
            with bounded():  # a lost row is a CheckFailed, not an InputError
                counts = run_pipeline(
                    [folder / f"in.{kind}"], folder / f"out{suffix}", options, registry=registry
                ).counts
        except InputError:
            return
        received = counts["rows"] + counts["rejected"]
        kept = counts["enriched"] + counts["collapsed_duplicates"]
        assert received == kept + counts["quarantined"]

    check()
