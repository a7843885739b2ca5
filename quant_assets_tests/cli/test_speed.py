"""`quant-assets speed` on small tables."""

import itertools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jsonschema import Draft202012Validator
from typer.testing import CliRunner

from quant_assets.cli.app import app
from quant_assets.gpus.registry import load_registry
from quant_assets.settings import PROJECT_ROOT
from quant_assets.speed.model import load_speed_model
from quant_assets.speed.run_check import check_runs
from quant_assets.speed.runs import read_runs
from quant_assets.speed.selection import select_runs
from quant_assets_tests.speed.test_runs import MINIMAL, write
from quant_assets_tests.speed.test_selection import PUBLISHED

FIT_SCHEMA = json.loads((PROJECT_ROOT / "docs/schemas/speed-fit.json").read_text())
CHECK_SCHEMA = json.loads((PROJECT_ROOT / "docs/schemas/speed-check.json").read_text())


def answer(*arguments: str) -> Any:
    run = CliRunner().invoke(app, ["speed", *arguments, "--format", "json"])
    assert run.exit_code == 0, run.exception
    return json.loads(run.stdout)


def table(path: Path, *rows: Mapping[str, object]) -> str:
    return str(write(path, *({**MINIMAL, **row} for row in rows)))


def made_runs(path: Path) -> str:
    """Runs of four GPUs at speeds of the simplest kind: all figures of a GPU times one share."""
    registry = load_registry()
    rows = []
    for name, model, level, test in itertools.product(
        ("GeForce RTX 4090", "GeForce RTX 3090", "Radeon RX 7900 XTX", "M2 Ultra 192GB"),
        ("Llama 3 8B", "Qwen2.5 14B", "Llama 3.2 3B"),
        ("Q4_K_M", "Q8_0", "Q6_K"),
        ("decode", "prefill"),
    ):
        gpu = registry.by_name[name]
        assert gpu.memory_bandwidth_gb_s and gpu.fp16_dense_tflops
        parameters_b = {"Llama 3 8B": 7.5, "Qwen2.5 14B": 14.0, "Llama 3.2 3B": 3.2}[model]
        bits = {"Q4_K_M": 4.9, "Q8_0": 8.5, "Q6_K": 6.6}[level]
        speed = 0.7 * gpu.memory_bandwidth_gb_s / (parameters_b * bits / 8)
        if test == "prefill":
            speed = 0.4 * gpu.fp16_dense_tflops * 1e3 / (2 * parameters_b)
        rows.append({"gpu": name, "model": model, "level": level, "test": test,
                     "tokens_per_s": speed, "source_url": "https://example.org/runs#row"})  # fmt: skip
    return table(path, *rows)


def test_fit_writes_a_model_that_knows_its_runs(tmp_path: Path) -> None:
    runs, output = made_runs(tmp_path / "runs.csv"), tmp_path / "model.yaml"
    document = answer("fit", "--runs", runs, "--output", str(output))
    Draft202012Validator(FIT_SCHEMA).validate(document)
    assert (document["rows"], document["fitted_rows"], document["gpus"]) == (72, 72, 4)
    assert document["dense"]["decode"]["all"]["n"] == 36
    model = load_speed_model(output)
    assert (model.runs, model.sources) == (72, ("https://example.org/runs",))
    selection = select_runs(read_runs([Path(runs)]), load_registry())
    found = check_runs(selection, model)
    assert found.rows_of_seen_gpus == 72
    assert found.dense.decode.all.median_error is not None
    assert found.dense.decode.all.median_error < 0.1


def test_cross_validation_predicts_a_gpu_from_the_others(tmp_path: Path) -> None:
    runs = made_runs(tmp_path / "runs.csv")
    document = answer("check", "--runs", runs, "--cross-validate")
    Draft202012Validator(CHECK_SCHEMA).validate(document)
    assert document["predicted_by"] == "cross-validation"
    assert document["predicted_rows"] == 72
    assert document["rows_of_seen_gpus"] == 0
    assert "this GPU" not in {row["rests_on"] for row in document["predictions"]}


def test_too_few_runs_leave_the_old_model(tmp_path: Path) -> None:
    output = tmp_path / "model.yaml"
    output.write_text("old")
    file = table(tmp_path / "runs.csv", {})
    run = CliRunner().invoke(app, ["speed", "fit", "--runs", file, "--output", str(output)])
    assert run.exception is not None and getattr(run.exception, "exit_code", None) == 3
    assert output.read_text() == "old"


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
    for text in ("3 of 4 rows predicted", "mixtures of experts, decode", "several GPUs, split by layers",
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
