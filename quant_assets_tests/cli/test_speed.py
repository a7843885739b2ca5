"""`quant-assets speed check` on small tables."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jsonschema import Draft202012Validator
from typer.testing import CliRunner

from quant_assets.cli.app import app
from quant_assets.settings import PROJECT_ROOT
from quant_assets_tests.speed.test_runs import MINIMAL, write
from quant_assets_tests.speed.test_selection import PUBLISHED

CHECK_SCHEMA = json.loads((PROJECT_ROOT / "docs/schemas/speed-check.json").read_text())


def answer(*arguments: str) -> Any:
    run = CliRunner().invoke(app, ["speed", *arguments, "--format", "json"])
    assert run.exit_code == 0, run.exception
    return json.loads(run.stdout)


def table(path: Path, *rows: Mapping[str, object]) -> str:
    return str(write(path, *({**MINIMAL, **row} for row in rows)))


def test_check_predicts_every_row_that_it_can(tmp_path: Path) -> None:
    first = table(tmp_path / "one.csv", {"row_id": "a"}, {"row_id": "b", "gpu": "Abacus"})
    second = table(tmp_path / "two.csv", {"row_id": "c", "test": "prefill", "tokens_per_s": 5000})
    document = answer("check", "--runs", first, "--runs", second)
    Draft202012Validator(CHECK_SCHEMA).validate(document)
    assert (document["rows"], document["predicted_rows"]) == (3, 2)
    assert [row["row_id"] for row in document["predictions"]] == ["a", "c"]
    assert [(row["row_id"], row["reason"]) for row in document["left_out"]] == [
        ("b", "unknown_gpu")
    ]
    assert document["dense"]["decode"]["by_gpu"]["GeForce RTX 4090"]["n"] == 1
    assert document["predicted_by"] == "shipped model"


def test_check_shows_tables_to_people(tmp_path: Path) -> None:
    file = table(
        tmp_path / "runs.csv",
        {"gpu": "=cmd|' /C calc'!A0"},
        {"row_id": "[bold]\x1b[31m", "model": "[link=x]Llama 3 8B[/link]"},
        {"model": "gpt-oss 20B", "level": "MXFP4"},
        {"gpu_count": 2},
    )
    run = CliRunner().invoke(app, ["speed", "check", "--runs", file])
    assert run.exit_code == 0, run.exception
    for text in ("3 of 4 rows predicted", "mixtures of experts, decode", "several GPUs, as one",
                 "Largest errors", "unknown_gpu", "decode at batch 1, median error"):  # fmt: skip
        assert text in run.stdout
    assert "\x1b" not in run.stdout
    assert "[bold]" in run.stdout


def test_check_on_the_published_table() -> None:
    document = answer("check", "--runs", str(PUBLISHED))
    Draft202012Validator(CHECK_SCHEMA).validate(document)
    assert document["left_out"] == []
    assert document["predicted_rows"] == document["rows"] > 600
    assert len(document["worst"]) == 10
    assert all(item["likely_reason"] for item in document["worst"])
    dense = document["dense"]
    assert dense["decode"]["all"]["n"] + dense["prefill"]["all"]["n"] > 400


def test_an_unusable_file_is_an_input_error(tmp_path: Path) -> None:
    file = tmp_path / "runs.csv"
    file.write_text("a,b\n1,2\n")
    run = CliRunner().invoke(app, ["speed", "check", "--runs", str(file)])
    assert run.exception is not None and getattr(run.exception, "exit_code", None) == 3
