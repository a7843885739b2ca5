"""`--format` and `--verbosity` of every command: documents, schemas, errors, exit codes, log."""

import json
import math
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from jsonschema import Draft202012Validator
from pydantic import BaseModel
from typer.testing import CliRunner

from quant_assets import errors
from quant_assets.bench.results import ResultStore
from quant_assets.cli import app as command_line
from quant_assets.cli import bench as bench_module
from quant_assets.cli import info as info_module
from quant_assets.cli.presentation import (
    CommandLine,
    Presentation,
    Reply,
    requested_presentation,
)
from quant_assets.cli.schemas import commands, schemas
from quant_assets.cli.verbosity import Verbosity
from quant_assets.errors import CheckFailed, ExitCode, QuantAssetsError
from quant_assets.settings import PROJECT_ROOT, get_settings
from quant_assets.warehouse.connection import Warehouse
from quant_assets_tests.bench.made_records import MakeRecord
from quant_assets_tests.models.tiny_models import make_model, tokenizer_model

SCHEMAS = PROJECT_ROOT / "docs" / "schemas"
GUIDE = PROJECT_ROOT / "docs" / "cli.md"
COMMANDS = sorted(commands())
OFFERS = "title,price\nNVIDIA RTX 4090 24GB,$1500\nsomething else,$5\n"


class Ended(NamedTuple):
    code: int
    out: str
    err: str

    def document(self, schema: str) -> Any:
        """The one document on standard output, valid by the schema of that name."""
        return valid(self.out, schema)


Run = Callable[..., Ended]


def valid(text: str, schema: str) -> Any:
    document = json.loads(text, parse_constant=pytest.fail)
    Draft202012Validator(json.loads((SCHEMAS / f"{schema}.json").read_text())).validate(document)
    return document


@pytest.fixture
def run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Iterator[Run]:
    """Runs a command line in an empty data root, beside a file of offers and a small model."""
    (tmp_path / "offers.csv").write_text(OFFERS)
    (tmp_path / "models.yaml").write_text("models: [{name: tiny, source: a/b}]")
    monkeypatch.setenv("QUANT_ASSETS_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("QUANT_ASSETS_MODELS_FILE", str(tmp_path / "models.yaml"))
    monkeypatch.chdir(tmp_path)
    get_settings.cache_clear()

    def run_command(*arguments: str) -> Ended:
        monkeypatch.setattr(sys, "argv", ["quant-assets", *arguments])
        capfd.readouterr()
        code = 0
        try:
            command_line.main()
        except SystemExit as ended:
            code = int(ended.code or 0)
        return Ended(code, *capfd.readouterr())

    yield run_command
    get_settings.cache_clear()


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_both_options(name: str) -> None:
    options = {option for item in commands()[name].params for option in item.opts}
    assert {"--format", "--verbosity"} <= options


def test_every_command_is_known() -> None:
    assert {"bench", "bench compare", "decision-report", "info", "quantize"} <= set(COMMANDS)


ANSWERS = {
    "types": ("types",),
    "estimate": ("estimate", "--params", "7B", "--gpu", "L4"),
    "intent": ("intent", "int4"),
    "info": ("info", "model"),
    "sql": ("sql", "select 1 as n, null as missing"),
    "enrich": ("enrich", "--input", "offers.csv", "--output", "out.csv"),
    "pipeline": ("pipeline", "--input", "offers.csv", "--output", "o.csv", "--report", "r.html"),
    "report": ("report", "--input", "offers.csv"),
    "collect": ("collect",),
    "bench": ("bench", "--dry-run"),
}


@pytest.mark.parametrize("name", ANSWERS)
def test_json_is_one_valid_document(
    name: str, run: Run, tmp_path: Path, new_record: MakeRecord
) -> None:
    if name == "info":
        make_model(tmp_path / "model", "qwen3", tokenizer_model())
    if name == "sql":
        with Warehouse(get_settings().warehouse).write():
            pass
    if name == "collect":
        ResultStore(get_settings().results).append(*new_record())
    ended = run(*ANSWERS[name], "--format", "json", "--verbosity", "quiet")
    assert (ended.code, ended.err) == (0, ""), ended.err + ended.out
    document = ended.document(name)
    if name == "enrich":
        assert (document["rows"], document["enriched"], document["quarantined"]) == (2, 1, 1)
    if name == "sql":
        assert document["rows"] == [["1", None]] and document["columns"] == ["n", "missing"]
    # The same, asked for before the command; and people are answered without JSON.
    assert run("--format", "json", *ANSWERS[name]).document(name)
    if name != "sql":
        shown = run(*ANSWERS[name]).out
        assert not shown.startswith(("{", "["))


@pytest.mark.parametrize("name", COMMANDS)
def test_wrong_usage_is_json_wherever_the_format_stands(name: str, run: Run) -> None:
    words = name.split()
    for arguments in (
        [*words, "--no-such-option", "--format", "json"],
        ["--format=json", *words, "--no-such-option"],
        [*words, "--format", "json", "--verbosity", "loud"],
    ):
        ended = run(*arguments)
        error = ended.document("error")
        assert ended.code == error["exit_code"] == ExitCode.WRONG_USAGE
        assert ended.err == ""
        assert f"quant-assets {name} --help" in error["next_step"]


FAULTS = [
    (("no-such-command",), ExitCode.WRONG_USAGE),
    (("info", "/nowhere"), ExitCode.WRONG_USAGE),
    (("estimate",), ExitCode.WRONG_USAGE),
    (("info", "."), ExitCode.BAD_INPUT),
    (("estimate", "no such model"), ExitCode.BAD_INPUT),
    (("types", "--params", "many"), ExitCode.BAD_INPUT),
    (("quantize", "./nowhere"), ExitCode.BAD_INPUT),
    (("convert", "./nowhere", "--to", "gguf"), ExitCode.BAD_INPUT),
    (("imatrix", "./nowhere"), ExitCode.BAD_INPUT),
    (("validate", "models.yaml"), ExitCode.BAD_INPUT),
    (("enrich", "--input", "none.csv", "--output", "out.csv"), ExitCode.BAD_INPUT),
    (("recommend", "--model", "tiny", "--max-price", "cheap"), ExitCode.BAD_INPUT),
    (("bench", "--model", "absent"), ExitCode.BAD_INPUT),
    (("bench", "compare", "a", "b"), ExitCode.BAD_INPUT),
]


@pytest.mark.parametrize(
    ("arguments", "code"),
    FAULTS,
    ids=lambda value: " ".join(map(str, value)) if isinstance(value, tuple) else None,
)
def test_errors_are_json_with_their_exit_code(
    arguments: tuple[str, ...], code: ExitCode, run: Run
) -> None:
    ended = run(*arguments, "--format", "json", "--verbosity", "quiet")
    error = ended.document("error")
    assert ended.code == error["exit_code"] == code
    assert ended.err == ""
    assert all(error[part] for part in ("what", "why", "next_step"))
    shown = run(*arguments)
    assert shown.code == code and shown.out == "" and shown.err


def test_an_error_after_the_document_leaves_it_whole(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def breach(*_: object) -> None:
        raise CheckFailed("A.", "B.", "C.")

    monkeypatch.setattr(bench_module, "check_records", breach)
    ended = run("bench", "--dry-run", "--check", "--format", "json")
    assert ended.code == ExitCode.CHECK_FAILED
    assert ended.document("bench")["cells"]
    assert valid(ended.err, "error")["what"] == "A."


def test_an_unexpected_error(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_a_secret_value")

    def fail(_: Path) -> None:
        raise ValueError("odd hf_a_secret_value")

    monkeypatch.setattr(info_module, "describe_model", fail)
    plain = run("info", ".")
    assert plain.code == ExitCode.FAILED and plain.out == ""
    assert "ValueError: odd <HF_TOKEN>" in plain.err and "Traceback" not in plain.err
    asked = run("info", ".", "--format", "json", "--verbosity", "debug")
    assert asked.document("error")["why"] == "ValueError: odd <HF_TOKEN>"
    assert "Traceback" in asked.err and "in fail" in asked.err
    assert "hf_a_secret_value" not in asked.err


def test_the_end_by_a_signal_is_json(tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    script = (
        "import os, signal, time; from quant_assets.cli import app, info\n"
        "def end(_):\n    os.kill(os.getpid(), signal.SIGTERM)\n    time.sleep(60)\n"
        "info.describe_model = end; app.main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, "info", "x", "--format", "json"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(PROJECT_ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 128 + signal.SIGTERM == ExitCode.TERMINATED
    assert valid(done.stdout, "error")["exit_code"] == ExitCode.TERMINATED
    assert done.stderr == ""


def test_verbosity_decides_about_standard_error_alone(run: Run) -> None:
    arguments = ("enrich", "--input", "offers.csv", "--output", "out.csv", "--verbosity")
    shown = {level: run(*arguments, level) for level in Verbosity}
    assert shown[Verbosity.QUIET].err == ""
    assert shown[Verbosity.NORMAL].err.startswith("2 rows: 1 enriched, 1 quarantined")
    verbose = shown[Verbosity.VERBOSE].err
    assert "quant-assets enrich: started" in verbose
    assert re.search(r"quant-assets enrich: done in \d+\.\d s", verbose)
    assert re.search(
        r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3} INFO quant_assets\.cli\.presentation: ",
        shown[Verbosity.DEBUG].err,
        re.MULTILINE,
    )
    assert {ended.out for ended in shown.values()} == {""}
    assert run("--verbosity", "quiet", *arguments[:-1]).err == ""


def test_what_json_cannot_hold(tmp_path: Path) -> None:
    class Odd(BaseModel):
        numbers: list[float]
        path: Path

    tiny = CommandLine()

    @tiny.command()
    def odd() -> Reply[Odd]:
        name = Path(os.fsdecode(b"a\xff"))
        return Reply(Odd(numbers=[1.5, math.nan, math.inf], path=name), lambda _: None)

    done = CliRunner().invoke(tiny, ["--format", "json"])
    assert json.loads(done.stdout) == {"numbers": [1.5, None, None], "path": "a\udcff"}


def test_the_presentation_that_a_command_line_asks_for() -> None:
    as_json = Presentation("json", Verbosity.DEBUG)
    assert requested_presentation(["x", "--format=json", "--verbosity", "debug"]) == as_json
    assert requested_presentation(["--format", "human", "x", "--format", "json"]).as_json
    assert not requested_presentation(["sql", "--", "--format", "json"]).as_json
    assert requested_presentation(["--format", "xml", "--verbosity"]) == Presentation()


def test_the_schemas_are_those_of_the_models() -> None:
    """`make schemas` writes them."""
    stored = {file.name: file.read_text(encoding="utf-8") for file in SCHEMAS.glob("*.json")}
    assert stored == schemas()
    for text in stored.values():
        Draft202012Validator.check_schema(json.loads(text))


def test_the_guide_lists_every_command() -> None:
    guide = GUIDE.read_text(encoding="utf-8")
    for name in COMMANDS:
        file = f"schemas/{name.replace(' ', '-')}.json"
        assert f"| `{name}` | [{file}]({file}) |" in guide


def test_the_readme_has_the_table_of_exit_codes() -> None:
    readme = (PROJECT_ROOT / "README.md").read_text(encoding="utf-8")
    table = re.findall(r"^\| (\d+) \| (.+) \|$", readme, re.MULTILINE)
    assert table == [(str(int(code)), code.meaning) for code in ExitCode]


def test_every_error_class_has_one_code_of_the_table() -> None:
    classes = [
        item
        for item in vars(errors).values()
        if isinstance(item, type) and issubclass(item, QuantAssetsError)
    ]
    codes = [item.exit_code for item in classes]
    assert len(classes) > 5 and len(set(codes)) == len(codes)
    assert all(isinstance(code, ExitCode) for code in codes)


def test_the_command_line_starts_without_heavy_libraries() -> None:
    script = (
        "import sys, quant_assets.cli.app; "
        "print([m for m in ('dagster', 'torch', 'transformers', 'plotly') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "PYTHONPATH": str(PROJECT_ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "[]\n"
