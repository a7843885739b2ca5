"""One set-up at a time, and its programs do not outlive it."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType

import pytest

from quant_assets.settings import PROJECT_ROOT

HOLD = """
import sys, time
from pathlib import Path
from turns import turn
with turn(Path(sys.argv[1]), "holding"):
    print("held", flush=True)
    time.sleep(60)
"""
# A set-up whose program starts another one, as a build does, and then hangs.
HANG = """
import sys
from steps import children_end_with_us, run
with children_end_with_us():
    run(["/bin/sh", "-c", "sleep 61 & echo $! > $0; wait", sys.argv[1]], "It could not be done")
"""


def start(script: str, path: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", script, str(path)],
        env={**os.environ, "PYTHONPATH": str(PROJECT_ROOT / "environments")},
        stdout=subprocess.PIPE,
        text=True,
    )


def wait_for(condition, limit_s: float = 20) -> bool:
    deadline = time.monotonic() + limit_s
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.02)
    return False


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_the_second_set_up_waits_names_the_holder_and_has_a_limit(
    turns: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    lock = tmp_path / "lock"
    holder = start(HOLD, lock)
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        monkeypatch.setattr(turns, "WAIT_LIMIT_S", 0.3)
        with (
            pytest.raises(turns.SetupError, match=rf"process {holder.pid} \(holding\) has been"),
            turns.turn(lock, "the second"),
        ):
            pytest.fail("two at once")
        assert f"waiting for process {holder.pid} (holding)" in capsys.readouterr().err
    finally:
        holder.kill()
        holder.wait()


def test_a_killed_set_up_holds_nothing(turns: ModuleType, tmp_path: Path):
    lock = tmp_path / "lock"
    holder = start(HOLD, lock)
    assert holder.stdout is not None
    holder.stdout.readline()
    holder.kill()
    holder.wait()
    began = time.monotonic()
    with turns.turn(lock, "the next"):
        assert time.monotonic() - began < 5
    assert lock.read_text() == ""


def test_a_replaced_lock_file_is_locked_again(turns: ModuleType, tmp_path: Path):
    lock = tmp_path / "lock"
    with turns.turn(lock, "the first"):
        lock.unlink()
        with turns.turn(lock, "the second"):
            assert "the second" in lock.read_text()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_programs_end_with_the_set_up_that_started_them(tmp_path: Path, number: signal.Signals):
    started = tmp_path / "pid"
    setup = start(HANG, started)
    assert wait_for(lambda: started.exists() and started.read_text().strip())
    grandchild = int(started.read_text())
    assert is_running(grandchild)
    setup.send_signal(number)
    setup.wait(20)
    assert wait_for(lambda: not is_running(grandchild), limit_s=5)
