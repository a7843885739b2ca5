"""Conversions on the command line, and the validity of what they take and make."""

from pathlib import Path

from typer.testing import CliRunner, Result

from quant_assets.cli.app import app
from quant_assets.errors import ConfirmationRequired
from quant_assets.quantize.conversion.targets import check_model


def convert(
    model: Path, target: str, output: Path, *options: str, command: str = "convert"
) -> Result:
    chosen = [option for option in options if command == "convert" or option != "--yes"]
    return CliRunner().invoke(
        app,
        [command, str(model), "--to", target, "--output-dir", str(output), *chosen],
        env={"COLUMNS": "400"},
    )


def converted(model: Path, target: str, output: Path, *options: str) -> Path:
    """The result of a conversion; a loss is reported, and a significant one needs consent."""
    significant = target != "hf"
    if significant:
        refused = convert(model, target, output, *options)
        assert isinstance(refused.exception, ConfirmationRequired)
        assert "both losses add up" in refused.exception.why and not output.exists()
    run = convert(model, target, output, *options, *(["--yes"] if significant else []))
    assert run.exit_code == 0, run.exception
    assert ("both losses add up" if significant else "does not come back") in run.stderr
    made = Path(run.stdout.strip())
    assert made.exists()
    return made


def assert_valid(model: Path) -> None:
    """Packed folders and GGUF files by `quant-assets validate`; the packed ones of untrained weights
    and plain folders, which that command does not take, by their headers."""
    check_model(model)
    if model.is_file() or (model / "manifest.json").exists():
        run = CliRunner().invoke(app, ["validate", str(model)])
        assert run.exit_code == 0, run.exception
        assert "loads and generates" in run.stdout
