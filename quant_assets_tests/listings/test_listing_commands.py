"""`quant-assets enrich`, `pipeline` and `report` as a user runs them."""

import csv
import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from quant_assets.cli.app import app
from quant_assets.errors import InputError
from quant_assets.settings import get_settings

ROWS = "title,price\nL4 24GB,$2400\nheat sink for A100,$20\n"


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("QUANT_ASSETS_HOME", str(tmp_path / "home"))
    get_settings.cache_clear()
    path = tmp_path / "in.csv"
    path.write_text(ROWS)
    return path


@pytest.fixture(autouse=True)
def forget_settings() -> object:
    yield
    get_settings.cache_clear()


def run(*arguments: object) -> str:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.output


def header(path: Path) -> list[str]:
    with path.open(newline="") as stream:
        return next(csv.reader(stream))


def test_enrich_with_and_without_the_metric(source: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.csv"
    output_text = run("enrich", "--input", source, "--output", output)
    assert "1 enriched, 1 quarantined" in output_text and "accessory" in output_text
    assert not any(name.startswith("quantization_") for name in header(output))
    run("enrich", "--input", source, "--output", output, "--quantize-metric", "--bits", "4,8")
    assert "quantization_capacity.7b_8bit" in header(output)
    assert (tmp_path / "out.quarantine.csv").exists()


def test_enriching_the_output_again_needs_force(source: Path, tmp_path: Path) -> None:
    first, second = tmp_path / "1.csv", tmp_path / "2.csv"
    run("enrich", "--input", source, "--output", first, "--quantize-metric")
    with pytest.raises(InputError, match="already"):
        run("enrich", "--input", first, "--output", second, "--quantize-metric")
    assert not second.exists()
    run("enrich", "--input", first, "--output", second, "--quantize-metric", "--force")
    assert header(second).count("quantization_capacity.7b") == 1


def test_pipeline_writes_report_and_parses_a_file_once(source: Path, tmp_path: Path) -> None:
    output, page = tmp_path / "out.parquet", tmp_path / "r.html"
    arguments = ("pipeline", "--input", source, "--output", output, "--report", page)
    run(*arguments, "--quantize-metric")
    assert page.exists() and page.with_suffix(".md").exists()
    kept = list((tmp_path / "home" / "listings" / "parsed").iterdir())
    assert len(kept) == 1
    before = kept[0].stat().st_mtime_ns
    run(*arguments)
    assert kept[0].stat().st_mtime_ns == before


def test_report_of_the_project_sample_by_default(source: Path, tmp_path: Path) -> None:
    run("report", "--quantize-metric")
    reports = tmp_path / "home" / "reports"
    assert "per slot" in (reports / "listings.md").read_text()
    assert (reports / "listings.html").exists()


def test_configured_capacity_reaches_every_command(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tmp_path / "mine.yaml"
    config.write_text(
        "quantization_capacity:\n"
        "  {bits: [4, 8], overhead_gb: 1, model_sizes_gb: {7b: 3.5, 13b: 6.5, 70b: 40}}\n"
    )
    monkeypatch.setenv("QUANT_ASSETS_HEURISTICS_FILE", str(config))
    get_settings.cache_clear()
    source.write_text("title,price\nH100 SXM 80GB,$24000\n")
    # (80 - 1) / 3.5, 6.5 and 40, then twice those weights.
    slots = {
        "7b_4bit": 22,
        "13b_4bit": 12,
        "70b_4bit": 1,
        "7b_8bit": 11,
        "13b_8bit": 6,
        "70b_8bit": 0,
    }
    for command in ("enrich", "pipeline"):
        output = tmp_path / f"{command}.csv"
        run(command, "--input", source, "--output", output, "--quantize-metric")
        with output.open(newline="") as stream:
            assert json.loads(next(csv.DictReader(stream))["quantization_capacity"]) == slots
    run("report", "--input", source, "--output", tmp_path / "r.html", "--quantize-metric")
    shown = (tmp_path / "r.md").read_text()
    assert "70B at 4 bits 40 GB" in shown and "Models per GPU at 8 bits" in shown
    run("enrich", "--input", source, "--output", output, "--quantize-metric",
        "--bits", "4", "--overhead-gb", "2")  # fmt: skip
    with output.open(newline="") as stream:
        assert next(csv.DictReader(stream))["quantization_capacity"] == (
            '{"7b": 22, "13b": 12, "70b": 1}'
        )


@pytest.mark.parametrize("overhead", ["0.9", "2.1", "-1", "much"])
def test_an_overhead_outside_1_to_2_gb_is_wrong_usage(
    source: Path, tmp_path: Path, overhead: str
) -> None:
    arguments = ["enrich", "--input", str(source), "--output", str(tmp_path / "o.csv")]
    result = CliRunner().invoke(app, [*arguments, "--overhead-gb", overhead])
    assert result.exit_code == 2
    assert not (tmp_path / "o.csv").exists()


@pytest.mark.parametrize("bits", ["four", "4,,8", ""])
def test_wrong_bits_are_wrong_usage(source: Path, tmp_path: Path, bits: str) -> None:
    arguments = ["enrich", "--input", str(source), "--output", str(tmp_path / "o.csv")]
    result = CliRunner().invoke(app, [*arguments, "--bits", bits])
    assert result.exit_code == 2
