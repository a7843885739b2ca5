"""`quant-assets enrich`, `pipeline` and `report` as a user runs them."""

import csv
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


@pytest.mark.parametrize("bits", ["four", "4,,8", ""])
def test_wrong_bits_are_wrong_usage(source: Path, tmp_path: Path, bits: str) -> None:
    arguments = ["enrich", "--input", str(source), "--output", str(tmp_path / "o.csv")]
    result = CliRunner().invoke(app, [*arguments, "--bits", bits])
    assert result.exit_code == 2
