"""Locks between real processes: a waiter learns the holder, and does not wait forever."""

import logging
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from quant_assets.errors import ResourceError
from quant_assets.host import locks
from quant_assets.host.locks import exclusive_lock, lock_holder

HOLD = """
import sys
from pathlib import Path
from quant_assets.host.locks import exclusive_lock
with exclusive_lock(Path(sys.argv[1]), "a test"):
    print("held", flush=True)
    sys.stdin.readline()
"""


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that holds `tmp_path / "lock"` until it reads a line."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path / "lock")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


def test_a_held_lock_is_an_error_that_names_file_purpose_and_holder(
    holder: subprocess.Popen[str], tmp_path: Path
):
    path = tmp_path / "lock"
    with pytest.raises(ResourceError) as raised, exclusive_lock(path, "the oven", wait_s=0):
        pass
    assert "the oven" in raised.value.what
    assert str(path) in raised.value.why
    if sys.platform == "linux":
        assert lock_holder(path) == holder.pid
        assert f"kill {holder.pid}" in raised.value.next_step


def test_a_wait_is_announced_and_ends_when_the_lock_is_free(
    holder: subprocess.Popen[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
):
    monkeypatch.setattr(locks, "ANNOUNCED_AFTER_S", 0.05)
    announced = threading.Event()

    class LetGo(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:  # noqa: ARG002
            announced.set()
            assert holder.stdin is not None
            holder.stdin.write("\n")
            holder.stdin.flush()

    logging.getLogger(locks.__name__).addHandler(handler := LetGo())
    try:
        with exclusive_lock(tmp_path / "lock", "the oven", wait_s=60):
            assert announced.is_set()
            assert lock_holder(tmp_path / "lock") in (os.getpid(), None)
    finally:
        logging.getLogger(locks.__name__).removeHandler(handler)
    (record,) = caplog.records
    assert "the oven" in record.getMessage()
    assert str(tmp_path / "lock") in record.getMessage()


def test_a_killed_holder_holds_nothing(holder: subprocess.Popen[str], tmp_path: Path):
    holder.kill()
    holder.wait()
    with exclusive_lock(tmp_path / "lock", "the oven", wait_s=0):
        pass


def test_a_lock_that_cannot_be_created_is_one_clear_error(tmp_path: Path):
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file" / "lock", tmp_path):
        with pytest.raises(ResourceError, match="cannot be used"), exclusive_lock(path, "the oven"):
            pass


def test_a_symlink_in_the_lock_files_place_is_refused(tmp_path: Path):
    victim = tmp_path / "victim"
    victim.write_text("content")
    (tmp_path / "lock").symlink_to(victim)
    with pytest.raises(ResourceError), exclusive_lock(tmp_path / "lock", "the oven", wait_s=0):
        pass
    assert victim.read_text() == "content"
