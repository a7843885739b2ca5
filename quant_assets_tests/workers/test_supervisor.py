"""A worker's every end becomes a result or one clear error. The workers here are real processes."""

import contextlib
import os
import signal
import sys
import textwrap
from pathlib import Path

import psutil
import pytest
from pydantic import BaseModel

from quant_assets.errors import InputError, QuantAssetsError, ResourceError, WorkerError
from quant_assets.workers import supervisor
from quant_assets.workers.protocol import Event, ProgressEvent, resident_memory
from quant_assets.workers.supervisor import run_worker


class Job(BaseModel):
    number: int = 20


class Answer(BaseModel):
    number: int
    token: str = ""


@pytest.fixture
def worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Write the body of a worker's `handle(job, channel)`; returns a function that runs it."""
    package = tmp_path / "quant_assets" / "workers"

    def run(body: str, **options: object) -> Answer:
        package.mkdir(parents=True, exist_ok=True)
        source = (
            "import os, signal, sys, time, errno\n"
            "from pydantic import BaseModel\n"
            "from quant_assets.errors import InputError\n"
            "from quant_assets.workers.protocol import serve\n"
            "class Job(BaseModel):\n    number: int\n"
            "class Answer(BaseModel):\n    number: int\n    token: str = ''\n"
            "def handle(job, channel):\n" + textwrap.indent(textwrap.dedent(body), "    ") + "\n"
            "serve(Job, handle)\n"
        )
        script = tmp_path / "scripted.py"
        script.write_text(source)
        start = supervisor.subprocess.Popen

        def start_script(command: list[str], **arguments: object) -> object:
            assert command[1:] == ["-m", "quant_assets.workers.scripted"]
            return start([sys.executable, str(script)], **arguments)

        monkeypatch.setattr(supervisor.subprocess, "Popen", start_script)
        return run_worker("scripted", Job(), Answer, **options)

    return run


def test_answer_and_events_arrive_in_order(worker):
    events: list[Event] = []
    answer = worker(
        """
        print("a library prints to standard output")
        channel.progress("count", 1, 2, "steps")
        channel.log("half way")
        channel.progress("count", 2, 2, "steps")
        return Answer(number=job.number + 1)
        """,
        on_event=events.append,
    )
    assert answer.number == 21
    kinds = [event.event for event in events if event.event != "memory"]
    assert kinds == ["progress", "log", "progress", "result"]


def test_an_error_of_ours_keeps_its_type_and_parts(worker):
    with pytest.raises(InputError) as raised:
        worker("raise InputError('The file is short.', 'It ends early.', 'Fetch it again.')")
    assert raised.value.what == "The file is short."
    assert raised.value.why == "It ends early."
    assert raised.value.next_step == "Fetch it again."


def test_an_unexpected_exception_is_named(worker):
    with pytest.raises(QuantAssetsError, match="ZeroDivisionError"):
        worker("1 / 0")


@pytest.mark.parametrize(
    ("number", "advice"),
    [
        (signal.SIGKILL, "out-of-memory"),
        (signal.SIGSEGV, "--rebuild"),
        (signal.SIGABRT, "Check the model's files"),
    ],
)
def test_a_signal_becomes_a_clear_error(worker, number: signal.Signals, advice: str):
    with pytest.raises(WorkerError) as raised:
        worker(
            f"""
            channel.progress("multiply", 3, 7, "layers")
            print("the library's last words", file=sys.stderr, flush=True)
            os.kill(os.getpid(), {int(number)})
            """
        )
    assert number.name in raised.value.what
    assert "'multiply' (3 of 7)" in raised.value.what
    assert "the library's last words" in raised.value.why
    assert advice in raised.value.next_step


def test_a_hanging_worker_is_killed(worker):
    pids: list[int] = []

    def note(event: Event) -> None:
        if isinstance(event, ProgressEvent):
            pids.append(int(event.done))

    with pytest.raises(WorkerError, match="no progress for 2 s"):
        worker(
            """
            channel.progress("pid", os.getpid(), 1, "")
            time.sleep(600)
            """,
            on_event=note,
            stall_timeout_s=2,
        )
    assert len(pids) == 1
    assert not psutil.pid_exists(pids[0])


def test_a_full_disk_is_said_so(worker):
    with pytest.raises(ResourceError, match="disk filled up while writing to /out/x"):
        worker("raise OSError(errno.ENOSPC, 'No space left on device', '/out/x')")


def test_no_memory_is_said_so(worker):
    with pytest.raises(ResourceError, match="ran out of memory"):
        worker("raise MemoryError")


def test_leaving_without_an_answer_is_an_error(worker):
    with pytest.raises(WorkerError, match="without an answer"):
        worker("os._exit(0)")


def test_rubbish_among_the_events_is_an_error(worker):
    with pytest.raises(WorkerError, match="no event"):
        worker("channel._stream.write('hello\\n'); channel._stream.flush(); time.sleep(5)")


def test_the_token_is_never_shown(worker, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HF_TOKEN", "hf_very_secret")
    lines: list[str] = []
    with pytest.raises(WorkerError) as raised:
        worker(
            """
            assert os.environ["HF_TOKEN"] == "hf_very_secret"
            assert not any("hf_very_secret" in argument for argument in sys.argv)
            channel.log("using " + os.environ["HF_TOKEN"])
            print("token", os.environ["HF_TOKEN"], file=sys.stderr, flush=True)
            os.abort()
            """,
            on_event=lambda event: lines.append(event.model_dump_json()),
        )
    assert "hf_very_secret" not in str(raised.value) + "".join(lines)
    assert "<HF_TOKEN>" in raised.value.why


def test_the_worker_dies_with_its_parent(tmp_path: Path):
    script = tmp_path / "parent.py"
    script.write_text(
        "import os, subprocess, sys\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time;"
        "from quant_assets.workers import protocol; protocol._die_with_parent();"
        "print(1, flush=True); time.sleep(600)'], stdout=subprocess.PIPE)\n"
        "child.stdout.readline()\n"
        "print(child.pid, flush=True)\n"
        "os.kill(os.getpid(), 9)\n"
    )
    process = supervisor.subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, check=False
    )
    child = int(process.stdout)
    with contextlib.suppress(psutil.NoSuchProcess):
        psutil.Process(child).wait(timeout=10)
    assert not psutil.pid_exists(child)


def test_peak_memory_is_the_workers_own(worker):
    """`ru_maxrss` would show the parent's peak after the fork."""
    ballast = bytearray(os.urandom(1)) * 600_000_000
    peak = resident_memory()[1]
    assert peak > 600_000_000
    answer = worker(
        """
        from quant_assets.workers.protocol import resident_memory
        return Answer(number=resident_memory()[1])
        """
    )
    assert len(ballast) > answer.number
