"""`quant-assets quantize` as a user runs it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from quant_assets.cli.app import app
from quant_assets.errors import InputError
from quant_assets.quantize.gguf.job import GgufPlan, QuantizeGgufResult
from quant_assets.settings import PROJECT_ROOT


@pytest.fixture
def command(tmp_path: Path) -> "Command":
    return Command(tmp_path)


class Command:
    """Runs the command in its own folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __call__(
        self, *arguments: str | Path, subcommand: str = "quantize"
    ) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [
                sys.executable,
                "-c",
                "from quant_assets.cli.app import main; main()",
                subcommand,
                *map(str, arguments),
            ],
            cwd=self.folder,
            env={
                **os.environ,
                "PYTHONPATH": str(PROJECT_ROOT),
                "QUANT_ASSETS_HOME": str(self.folder / "home"),
            },
            capture_output=True,
            text=True,
            check=False,
        )


def test_json_result_in_the_current_folder(command: Command, models: dict[str, Path]) -> None:
    done = command(models["qwen3"], "--level", "q4_k_s", "--format", "json", "--threads", "1")
    assert done.returncode == 0, done.stderr
    result = QuantizeGgufResult.model_validate_json(done.stdout)
    assert result.output == command.folder / "qwen3-Q4_K_S.gguf"
    assert result.output.stat().st_size == result.bytes
    assert result.validated
    for step in ("check", "plan", "quantize", "validate"):
        assert f"{step}: done" in done.stderr
    assert "GB peak" in done.stderr


def test_dry_run_writes_nothing_and_knows_the_size(
    command: Command, bf16_files: dict[str, Path]
) -> None:
    arguments = (bf16_files["mixtral"], "--level", "Q3_K_M", "--threads", "1")
    dry = command(*arguments, "--dry-run", "--format", "json", "--verbosity", "quiet")
    assert dry.returncode == 0, dry.stderr
    assert dry.stderr == ""
    plan = GgufPlan.model_validate_json(dry.stdout)
    assert list(command.folder.glob("*.gguf*")) == []
    assert plan.estimated_seconds > 0
    assert sum(group.n_parameters for group in plan.groups) == plan.n_parameters
    done = command(*arguments, "--output-dir", "made/here")
    assert done.returncode == 0, done.stderr
    made = command.folder / "made" / "here" / "mixtral-Q3_K_M.gguf"
    assert made.stat().st_size == plan.file_bytes
    assert "generated" in done.stdout


def test_a_file_of_unknown_origin_is_replaced_on_request(
    command: Command, bf16_files: dict[str, Path]
) -> None:
    output = command.folder / "llama-Q8_0.gguf"
    output.write_text("another tool's")
    arguments = (bf16_files["llama"], "--level", "Q8_0", "--verbosity", "quiet")
    refused = command(*arguments)
    assert refused.returncode == 6 and refused.stdout == ""
    assert str(output) in refused.stderr and str(bf16_files["llama"]) in refused.stderr
    assert "--overwrite" in refused.stderr and "Traceback" not in refused.stderr
    assert output.read_text() == "another tool's"
    assert command(*arguments, "--overwrite").returncode == 0
    again = command(*arguments, "--format", "json")
    assert again.returncode == 0
    assert QuantizeGgufResult.model_validate_json(again.stdout).reused


def test_dry_run_table(command: Command, bf16_files: dict[str, Path]) -> None:
    shown = command(bf16_files["llama"], "--dry-run").stdout
    for part in ("blk.*.attn_v.weight", "Q6_K", "bits per weight", "time estimate", "file size"):
        assert part in shown


def test_errors_have_three_parts_and_an_exit_code(command: Command) -> None:
    missing = command("./no-such-model")
    assert missing.returncode == 3
    assert "There is no model at './no-such-model'." in missing.stderr
    assert "Traceback" not in missing.stderr
    assert missing.stdout == ""


def test_unknown_level_is_bad_input(command: Command) -> None:
    wrong = command("./no-such-model", "--level", "Q4_K_XL")
    assert wrong.returncode == 3
    assert "Q4_K_M" in wrong.stderr


def test_a_missing_calibration_text_is_bad_input(
    command: Command, bf16_files: dict[str, Path]
) -> None:
    missing = command(bf16_files["llama"], "--text", "none.txt", subcommand="imatrix")
    assert missing.returncode == 3
    assert "There is no text at none.txt." in missing.stderr


def test_imatrix_then_a_level_that_needs_it(
    command: Command, bf16_files: dict[str, Path], calibration: Path
) -> None:
    made = command(
        bf16_files["gemma3"], "--text", calibration, "--chunks", "1", subcommand="imatrix"
    )
    assert made.returncode == 0, made.stderr
    matrix = Path(made.stdout.strip())
    assert matrix == command.folder / "gemma3.imatrix.gguf"
    done = command(bf16_files["gemma3"], "--level", "IQ2_M", "--imatrix", matrix)
    assert done.returncode == 0, done.stderr
    assert (command.folder / "gemma3-IQ2_M.gguf").exists()


@pytest.mark.parametrize(
    "arguments",
    [
        ("quantize", "--threads", "0"),
        ("quantize", "--threads", "100000"),
        ("quantize", "--to", "gptq", "--bits", "5"),
        ("quantize", "--to", "gptq", "--bits", "-4"),
        ("quantize", "--to", "awq", "--bits", "16"),
        ("quantize", "--to", "gptq", "--group-size", "0"),
        ("quantize", "--to", "gptq", "--calibration-samples", "0"),
        ("quantize", "--to", "gptq", "--sequence-length", "-1"),
        ("convert", "--to", "gptq", "--bits", "45"),
        ("convert", "--to", "awq", "--group-size", "-5"),
        ("convert", "--to", "gguf", "--threads", "-1"),
        ("imatrix", "--chunks", "0"),
        ("imatrix", "--threads", "513"),
    ],
)
def test_absurd_numbers_are_rejected(
    larger_bf16: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...]
) -> None:
    monkeypatch.chdir(tmp_path)
    name, *options = arguments
    run = CliRunner().invoke(app, [name, str(larger_bf16), *options])
    assert run.exit_code == 2 or isinstance(run.exception, InputError), run.exception
    assert list(tmp_path.iterdir()) == []
