"""Data cannot control the terminal or act as markup, and its value survives."""

import io
import json
import os
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from rich.table import Table

from quant_assets.cli import app as command_line
from quant_assets.cli.output import LiteralConsole, print_line, print_path
from quant_assets.cli.verbosity import Verbosity
from quant_assets.cli.worker_progress import WorkerProgress
from quant_assets.escaping import json_text, markdown_text, terminal_line, terminal_text
from quant_assets.processes.protocol import LogEvent, ProgressEvent

HOSTILE = "\x1b]0;owned\x07 \x9b31m \x7f \u202egnp.exe \r\x08 \ud800 [red]a:x:0[/red] :smile:"
CONTROLS = "\x1b\x07\x9b\x7f\u202e\r\x08\ud800"


def controls_in(text: str) -> list[str]:
    return [sign for sign in CONTROLS if sign in text]


def test_control_characters_are_escaped_and_other_text_is_unchanged():
    shown = terminal_text(HOSTILE)
    assert shown == (
        r"\x1b]0;owned\x07 \x9b31m \x7f \u202egnp.exe \r\x08 \ud800 [red]a:x:0[/red] :smile:"
    )
    plain = "Žluťoučký 4090\tRTX\n中文 👩\u200d💻 1\u00a0299 €"
    assert terminal_text(plain) == plain
    assert terminal_line("a\nerror: b\t") == r"a\nerror: b\t"


@given(st.text())
def test_json_keeps_its_value(text: str):
    document = json.dumps({"title": text}, ensure_ascii=False)
    shown = json_text(document)
    assert json.loads(shown) == {"title": text}
    assert terminal_text(shown) == shown


@given(st.text(st.characters(max_codepoint=0x2100)))
def test_no_escape_sequence_gets_through(text: str):
    assert all(
        sign.isprintable() or sign in "\n\t" or sign > "\x9f" for sign in terminal_text(text)
    )
    assert not controls_in(terminal_text(text))


@pytest.mark.parametrize("terminal", [True, False])
def test_tables_show_data_literally(terminal: bool):
    stream = io.StringIO()
    console = LiteralConsole(file=stream, force_terminal=terminal, no_color=True, width=200)
    table = Table(HOSTILE, title=HOSTILE)
    table.add_row(HOSTILE)
    console.print(table)
    console.print(HOSTILE)
    shown = stream.getvalue()
    assert shown.count(terminal_text(HOSTILE)) == 4
    assert not controls_in(
        shown.replace("\x1b[1m", "").replace("\x1b[3m", "").replace("\x1b[0m", "")
    )


@pytest.mark.parametrize("terminal", [True, False])
def test_worker_messages_and_steps_are_escaped(terminal: bool):
    stream = io.StringIO()
    console = LiteralConsole(file=stream, force_terminal=terminal, color_system=None, width=200)
    with WorkerProgress(Verbosity.NORMAL, console) as progress:
        progress.show(ProgressEvent(step="[red]\x1b]0;x\x07", done=0, total=2, unit="runs"))
        progress.show(LogEvent(level="warning", message="\x1b]0;owned\x07 [red] :smile:"))
    shown = stream.getvalue()
    assert r"warning: \x1b]0;owned\x07 [red] :smile:" in shown
    assert r"[red]\x1b]0;x\x07" in shown
    assert "\x1b]" not in shown and "\x07" not in shown


def test_a_path_is_exact_in_a_pipe_and_escaped_elsewhere(capfdbinary: pytest.CaptureFixture[bytes]):
    name = os.fsdecode(b"a\x1b[31m\xff.gguf")
    print_path(Path(name))
    print_line(f"report: {name}")
    assert capfdbinary.readouterr().out == (
        b"a\x1b[31m\xff.gguf\n" + rb"report: a\x1b[31m\udcff.gguf" + b"\n"
    )


@pytest.mark.parametrize(
    ("arguments", "exit_code"),
    [
        (["info", "--\x1b]0;owned\x07"], 2),
        (["info", ".", "\x1b]0;owned\x07"], 2),
        (["\x1b]0;owned\x07"], 2),
        (["--\x1b]0;owned\x07"], 2),
        (["estimate", "\x1b]0;owned\x07[red]:smile:"], 3),
    ],
)
def test_errors_escape_the_arguments_they_quote(
    arguments: list[str],
    exit_code: int,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
):
    monkeypatch.setattr(sys, "argv", ["quant-assets", *arguments])
    with pytest.raises(SystemExit) as ended:
        command_line.main()
    assert ended.value.code == exit_code
    message = capfd.readouterr().err
    assert "\x1b" not in message and "\x07" not in message
    assert r"\x1b]0;owned\x07" in message


HOSTILE_TITLES = [
    "[x](javascript:alert(1))",
    "![x](https://evil.example/x.png)",
    "<img src=x onerror=alert(1)>",
    "a | b | c",
    "`code` *bold* _it_ ~~gone~~ **b**",
    "line\n\n# heading\r\n- item",
    "&lt;script&gt; $x$",
    r"\[x](javascript:alert(1)) \| \\| ",
    "- item",
    "1. item",
    "1234) item",
    "- - -",
    "===",
    "3.",
    "[ref]: javascript:alert(1)",
    "<javascript:alert(1)>",
]


def test_numbers_stay_readable_in_markdown():
    for text in ("3.7", "-5", "1,299.50", "12:30", "2 x (80 GB)"):
        assert markdown_text(text) == text


@pytest.mark.parametrize("title", HOSTILE_TITLES)
def test_markdown_shows_text_literally(title: str):
    """CommonMark renders the same text, and nothing but text."""
    parser = MarkdownIt("gfm-like", {"linkify": False})
    text = " ".join(title.split())
    (_, paragraph, _) = parser.parse(markdown_text(title))
    assert {part.type for part in paragraph.children} <= {"text", "text_special"}
    assert "".join(part.content for part in paragraph.children) == text
    table = parser.parse(f"| a | b |\n| --- | --- |\n| {markdown_text(title)} | end |")
    cells = [token for token in table if token.type == "inline"]
    assert ["".join(p.content for p in cell.children) for cell in cells] == ["a", "b", text, "end"]
    assert {p.type for cell in cells for p in cell.children} <= {"text", "text_special"}
