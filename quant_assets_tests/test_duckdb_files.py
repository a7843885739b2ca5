"""DuckDB reads and writes the named file, whatever its name means as a pattern."""

import os
from pathlib import Path

import duckdb
import pytest

from quant_assets.duckdb_files import (
    READ_OPTIONS,
    display_name,
    exact_pattern,
    readable,
    writable,
)
from quant_assets.errors import InputError
from quant_assets.settings import Settings

NAMES = [
    os.fsdecode(name)
    for name in (
        b"d[1]", b"d*", b"d?", b"d{1,2}", b"d'q\"", b"d s", b"d\nn", b"d\\b", b"d\\b[1]", b"x=1",
        b"~", b"[!a-z]", b"**", b"file:", b"%41", b"#h", b"\xffd", b"\xff[*]\\?",
    )
]  # fmt: skip
READERS = {
    "csv": f"read_csv(?, header=true, all_varchar=true, {READ_OPTIONS})",
    "json": f"read_json(?, {READ_OPTIONS})",
    "parquet": f"read_parquet(?, {READ_OPTIONS})",
}


@pytest.mark.parametrize("kind", READERS)
def test_every_file_is_read_by_its_own_name(tmp_path: Path, kind: str) -> None:
    for decoy in ("d1", "dx"):
        (tmp_path / decoy).mkdir()
        (tmp_path / decoy / f"d1.{kind}").write_text("not this one")
    pairs = [
        *(("plain", name) for name in NAMES),
        *((name, "plain") for name in NAMES),
        *zip(NAMES, (*NAMES[5:], *NAMES[:5]), strict=True),
    ]
    places = [tmp_path / folder / f"{name}.{kind}" for folder, name in pairs]
    with duckdb.connect() as connection:
        for number, path in enumerate(places):
            path.parent.mkdir(exist_ok=True)
            with writable(path) as target:
                query = f"copy (select 'row {number}' as t) to ? (format {kind})"
                connection.execute(query, [target]).fetchall()
        for number, path in enumerate(places):
            with readable(path) as pattern:
                found = connection.execute(f"from {READERS[kind]}", [pattern]).fetchall()
            assert found == [(f"row {number}",)], path
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(written) == len(places) + 2


def test_an_impossible_pattern_is_an_error_with_the_name() -> None:
    with pytest.raises(InputError, match=r"cannot open the file .*\\xff"):
        exact_pattern(Path(os.fsdecode(b"/a/\xff.parquet")))
    assert display_name(os.fsdecode(b"\xc3\xa9\xff")) == "é\\xff"


@pytest.mark.parametrize("name", [b"a?b", b"a#b", b"a\\b", b"a%41", b"a\xff"])
def test_a_data_root_unusable_for_databases_is_refused(
    name: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("QUANT_ASSETS_HOME", os.fsdecode(os.fsencode(tmp_path) + b"/" + name))
    with pytest.raises(InputError, match="QUANT_ASSETS_HOME"):
        Settings()


@pytest.mark.parametrize("name", ["a[1]", "a*", "{a}", "a 'b\"", "a\nb", "100%", "x=1"])
def test_other_characters_in_the_data_root_are_accepted(name: str, tmp_path: Path) -> None:
    assert Settings(home=tmp_path / name).home == tmp_path / name
