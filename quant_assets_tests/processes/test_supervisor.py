"""However a worker ends, the parent gets a result or one clear error. Workers are real processes."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import psutil
import pytest
from pydantic import BaseModel

from quant_assets.errors import InputError, QuantAssetsError, ResourceError, WorkerError
from quant_assets.processes import supervisor
from quant_assets.processes.guarded import guarded
from quant_assets.processes.memory import resident_memory
from quant_assets.processes.protocol import Event, ProgressEvent
from quant_assets.processes.session import WorkerSession
from quant_assets.processes.supervisor import run_worker


class Job(BaseModel):
    number: int = 20


class Answer(BaseModel):
    number: int
    token: str = ""


@pytest.fixture
def worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Write the body of a worker's `handle(job, channel)`; returns a function that runs it."""
    package = tmp_path / "quant_assets" / "workers"
    start = supervisor.subprocess.Popen

    def run(body: str, **options: object) -> Answer:
        package.mkdir(parents=True, exist_ok=True)
        source = (
            "import os, signal, sys, time, errno\n"
            "from pydantic import BaseModel\n"
            "from quant_assets.errors import InputError\n"
            "from quant_assets.processes.protocol import serve\n"
            "class Job(BaseModel):\n    number: int\n"
            "class Answer(BaseModel):\n    number: int\n    token: str = ''\n"
            "def handle(job, channel):\n" + textwrap.indent(textwrap.dedent(body), "    ") + "\n"
            "serve(Job, handle)\n"
        )
        script = tmp_path / "scripted.py"
        script.write_text(source)

        def start_script(command: list[str], **arguments: object) -> object:
            assert command[-2:] == ["-m", "quant_assets.workers.scripted"]
            return start([*command[:-2], str(script)], **arguments)

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
        session=WorkerSession(events.append),
    )
    assert answer.number == 21
    kinds = [event.event for event in events if event.event != "memory"]
    assert kinds == ["progress", "log", "progress", "result"]


def test_a_project_error_keeps_its_type_and_parts(worker):
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
            session=WorkerSession(note),
            stall_timeout_s=2,
        )
    assert len(pids) == 1
    assert not psutil.pid_exists(pids[0])


def test_a_full_disk_is_reported(worker):
    with pytest.raises(ResourceError, match="disk filled up while writing to /out/x"):
        worker("raise OSError(errno.ENOSPC, 'No space left on device', '/out/x')")


def test_lack_of_memory_is_reported(worker):
    with pytest.raises(ResourceError, match="ran out of memory"):
        worker("raise MemoryError")


def test_leaving_without_an_answer_is_an_error(worker):
    with pytest.raises(WorkerError, match="without an answer"):
        worker("os._exit(0)")


def test_an_invalid_event_is_an_error(worker):
    with pytest.raises(WorkerError, match="an invalid event"):
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
            session=WorkerSession(
                lambda event: lines.append(event.model_dump_json()), {"HF_TOKEN": "hf_very_secret"}
            ),
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
        from quant_assets.processes.memory import resident_memory
        return Answer(number=resident_memory()[1])
        """
    )
    assert len(ballast) > answer.number


def test_a_secret_that_looks_like_a_number_breaks_nothing(worker, monkeypatch: pytest.MonkeyPatch):
    for secret in ("1", "20", "21", "progress", "result", "true"):
        monkeypatch.setenv("HF_TOKEN", secret)
        answer = worker(
            """
            channel.progress("progress", 1, 20, "steps")
            return Answer(number=job.number + 1, token="true")
            """,
            session=WorkerSession(variables={"HF_TOKEN": secret}),
        )
        assert answer.number == 21


def test_a_worker_gets_the_variables_it_needs_and_no_secret(
    worker, monkeypatch: pytest.MonkeyPatch
):
    passed = {
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "0",
        "HF_HOME": "/nowhere/hf",
        "https_proxy": "http://proxy.example:3128",
        "QUANT_ASSETS_DATA": "/nowhere/data",
        "LC_ALL": "C.UTF-8",
        "TZ": "UTC",
    }
    secret = "planted-7f3a9c"
    kept_back = ("HF_TOKEN", "AWS_SECRET_ACCESS_KEY", "HF_HUB_TOKEN", "SESSION", "DATABASE_URL")
    for name, value in passed.items():
        monkeypatch.setenv(name, value)
    for name in kept_back:
        monkeypatch.setenv(name, secret)
    answer = worker(
        """
        import json
        return Answer(number=1, token=json.dumps(dict(os.environ)))
        """,
        session=WorkerSession(variables={"DAGSTER_PIPES_CONTEXT_OF_A_TEST": "x"}),
    )
    given = json.loads(answer.token)
    assert passed.items() <= given.items()
    assert given["DAGSTER_PIPES_CONTEXT_OF_A_TEST"] == "x"
    assert secret not in answer.token


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ("b'x' * 300_000", "more than 0 MiB"),
        ("b'\\xff\\xfe{\\n'", "an invalid event"),
        ("b'[' * 100_000 + b'\\n'", "an invalid event"),
    ],
)
def test_a_stream_that_is_not_the_protocol_is_an_error(
    worker, monkeypatch: pytest.MonkeyPatch, written: str, message: str
):
    monkeypatch.setattr(supervisor, "LONGEST_EVENT_BYTES", 200_000)
    with pytest.raises(WorkerError, match=message):
        worker(f"os.write(channel._stream.fileno(), {written}); time.sleep(60)")


def test_events_after_the_answer_are_an_error(worker):
    with pytest.raises(WorkerError, match="after its answer"):
        worker("channel.result(Answer(number=1)); channel.log('more'); time.sleep(60)")


def test_an_answer_with_the_wrong_structure_is_an_error(worker):
    with pytest.raises(WorkerError, match="wrong structure"):
        worker(
            """
            class Other(BaseModel):
                text: str
            return Other(text="x")
            """
        )


def test_a_worker_that_lingers_after_its_answer_is_ended(worker, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(supervisor, "EXIT_LIMIT_S", 0.2)
    answer = worker("channel.result(Answer(number=5)); time.sleep(600)")
    assert answer.number == 5


GRANDCHILD = """
import subprocess
child = subprocess.Popen([sys.executable, "-S", "-c", "import time; time.sleep(600)"],
                         start_new_session={apart})
channel.progress("pid", child.pid, 1, "")
"""


@pytest.mark.parametrize("apart", [False, True])
def test_a_grandchild_that_holds_the_pipes_ends_with_the_worker(worker, apart: bool):
    pids: list[int] = []

    def note(event: Event) -> None:
        if isinstance(event, ProgressEvent):
            pids.append(int(event.done))

    answer = worker(
        GRANDCHILD.format(apart=apart) + "return Answer(number=1)", session=WorkerSession(note)
    )
    assert answer.number == 1
    with pytest.raises(WorkerError, match="SIGKILL"):
        worker(
            GRANDCHILD.format(apart=apart) + "os.kill(os.getpid(), signal.SIGKILL)",
            session=WorkerSession(note),
        )
    assert len(pids) == 2
    assert not [pid for pid in pids if psutil.pid_exists(pid)]


def test_the_death_of_the_guard_is_survived(worker):
    """A user who kills the worker that `ps` shows may hit its guard."""
    pids: list[int] = []

    def note(event: Event) -> None:
        if isinstance(event, ProgressEvent):
            pids.append(int(event.done))

    with pytest.raises(WorkerError, match="SIGKILL"):
        worker(
            GRANDCHILD.format(apart=False) + "os.kill(os.getppid(), signal.SIGKILL)\n"
            "time.sleep(600)",
            session=WorkerSession(note),
        )
    assert ended_in_time(pids)


def ended_in_time(pids: list[int]) -> bool:
    """Whether all processes end within the promised five seconds."""
    deadline = time.monotonic() + 5
    while left := [pid for pid in pids if alive(pid)]:
        if time.monotonic() > deadline:
            print("still alive:", left)
            return False
        time.sleep(0.05)
    return True


def alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


PARENT = """
import sys, threading
from quant_assets.processes.guarded import guarded
import subprocess
command = [sys.executable, "-S", "-c", '''
import os, signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
signal.signal(signal.SIGINT, signal.SIG_IGN)
sleeper = [sys.executable, "-S", "-c", "import time; time.sleep(600)"]
near = subprocess.Popen(sleeper)
far = subprocess.Popen(sleeper, start_new_session=True)
print(os.getpid(), near.pid, far.pid, flush=True)
time.sleep(600)
''']
# From a thread that ends immediately, to catch anything tied to a thread instead of the process.
started = threading.Thread(
    target=lambda: subprocess.Popen(guarded(command, grace_s=0.5), start_new_session=True))
started.start()
started.join()
sys.stdin.readline()
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGHUP, signal.SIGTERM, signal.SIGINT])
def test_nothing_guarded_outlives_its_parent(number: signal.Signals):
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert parent.stdout is not None
    pids = [int(pid) for pid in parent.stdout.readline().split()]
    assert len(pids) == 3
    time.sleep(0.3)
    assert all(alive(pid) for pid in pids)
    guard = psutil.Process(pids[0]).parent()
    assert guard is not None
    parent.send_signal(number)
    parent.wait(timeout=5)
    assert ended_in_time([*pids, guard.pid])


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_guard_told_to_end_kills_a_command_that_ignores_signals(number: signal.Signals):
    command = [sys.executable, "-S", "-c"]
    deaf = "import os, signal, time; [signal.signal(n, signal.SIG_IGN) for n in (1, 2, 15)]"
    guard = subprocess.Popen(
        guarded([*command, f"{deaf}; print(os.getpid(), flush=True); time.sleep(600)"]),
        stdout=subprocess.PIPE,
        text=True,
    )
    assert guard.stdout is not None
    pid = int(guard.stdout.readline())
    guard.send_signal(number)
    assert guard.wait(timeout=5) == -signal.SIGKILL
    assert not alive(pid)
