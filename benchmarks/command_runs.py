"""The `quant-assets` command as a user runs it: in a process of its own, seen from outside."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, NamedTuple, TypeVar

from quant_assets.settings import PROJECT_ROOT

AT_A_TIME: Final = 2
"""Processes that run concurrently."""
TIME_LIMIT_S: Final = 300.0
_COLUMNS = "400"  # usage errors are set in boxes as wide as the terminal
_BOX = re.compile("[│╭╮╰╯─]+")
_OWN_VARIABLES = re.compile("QUANT_ASSETS_|HF_|HUGGING|VARIANTS$|BATCH_SIZES$|WARMUPS$|RUNS$")

_Item = TypeVar("_Item")
_Answer = TypeVar("_Answer")


class ErrorMessage(NamedTuple):
    """What a failed command told its user: the whole message, and the next step in it."""

    text: str
    next_step: str


class Outcome(NamedTuple):
    """How a command ended; its time in seconds."""

    exit_code: int
    output: str
    messages: str
    seconds: float

    @property
    def error(self) -> ErrorMessage:
        """The error message: three parts, or the words of a usage error, which are one part.

        With `--format json` it is the document on standard output.
        """
        document = _document(self.output)
        if "next_step" in document:
            text = f"{document['what']} {document['why']} {document['next_step']}"
            return ErrorMessage(text, str(document["next_step"]))
        _, found, text = self.messages.rpartition("error: ")
        if not found:
            usage = " ".join(_BOX.sub(" ", self.messages).split())
            return ErrorMessage(usage, usage)
        lines = [line for line in text.splitlines() if line.strip()]
        return ErrorMessage("\n".join(lines), lines[-1] if lines else "")

    @property
    def has_traceback(self) -> bool:
        """Whether Python's own report of an error reached the user."""
        return "Traceback (most recent call last)" in self.messages + self.output

    @property
    def summary(self) -> str:
        """The end of the messages in one line, for a report."""
        return " ".join(self.error.text.split())[-500:]


def _document(output: str) -> dict[str, object]:
    """The JSON object that `output` is, or else an empty one."""
    try:
        document = json.loads(output)
    except ValueError:
        return {}
    return document if isinstance(document, dict) else {}


@dataclass(frozen=True)
class Command:
    """A call of `quant-assets`, or of Python with `-c` where `arguments` begin so.

    It runs in `folder` with `<folder>/home` as its data root and without a network's hub. A
    variable of None is unset. `prelude` is Python that runs first in the same process, such as one
    that lowers a limit.
    """

    arguments: tuple[str | Path, ...]
    folder: Path
    variables: Mapping[str, str | None] = field(default_factory=dict)
    prelude: str = ""
    project: Path = PROJECT_ROOT

    def run(self) -> Outcome:
        """Run it to its end, or for `TIME_LIMIT_S` seconds (exit code -9 then)."""
        started = time.monotonic()
        with self.start() as process:
            try:
                output, messages = process.communicate(timeout=TIME_LIMIT_S)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                output, messages = process.communicate()
        return Outcome(process.returncode, output, messages, time.monotonic() - started)

    def start(self) -> "subprocess.Popen[str]":
        """Start it as the leader of a process group."""
        code = f"{self.prelude}\nfrom quant_assets.cli.app import main\nmain()"
        return subprocess.Popen(
            [sys.executable, "-c", code, *map(str, self.arguments)],
            cwd=self.folder,
            env=self._environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            encoding="utf-8",
            errors="backslashreplace",
            start_new_session=True,
        )

    def _environment(self) -> dict[str, str]:
        inherited = {
            name: value for name, value in os.environ.items() if not _OWN_VARIABLES.match(name)
        }
        chosen = {
            **inherited,
            "PYTHONPATH": str(self.project),
            "QUANT_ASSETS_HOME": str(self.folder / "home"),
            "HF_HUB_OFFLINE": "1",
            "COLUMNS": _COLUMNS,
            "PYTHONUTF8": "1",
            **self.variables,
        }
        return {name: value for name, value in chosen.items() if value is not None}


def run_all(
    run: Callable[[_Item], _Answer], items: Sequence[_Item], show: Callable[[int, _Answer], None]
) -> list[_Answer]:
    """`run` of every item in order, `AT_A_TIME` at once; `show` gets each answer and its number."""
    with ThreadPoolExecutor(AT_A_TIME) as pool:
        answers: Iterable[_Answer] = pool.map(run, items)
        kept = []
        for number, answer in enumerate(answers, 1):
            show(number, answer)
            kept.append(answer)
    return kept
