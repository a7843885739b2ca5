"""Runs whose process was killed: the next start ends them, frees their slots, and completes.

`KILLS` sets how many processes are killed (4 by default), `KILL_SEED` repeats a failure.
"""

import itertools
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import dagster as dg
import psutil
import pytest
import sqlalchemy

from quant_assets.assets.conventions import DEVICE_POOL, WAREHOUSE_POOL
from quant_assets.errors import ResourceError
from quant_assets.resources import executor, run_processes
from quant_assets.resources.executor import PatientClaims, execute_here
from quant_assets.resources.instance import dagster_instance
from quant_assets.resources.run_processes import BOOT_TAG, HOST_TAG, end_dead_runs, process_tags
from quant_assets.settings import PROJECT_ROOT, Settings
from quant_assets_tests.process_trees import PROMISED_S, below, survivors
from quant_assets_tests.resources.pooled_run import pooled_job

KILLS = int(os.environ.get("KILLS", "4"))
SIGNALS = (signal.SIGKILL, signal.SIGHUP, signal.SIGTERM, signal.SIGINT)


class Process:
    """A process of `pooled_run` and the lines that it printed."""

    def __init__(self, home: Path, *seconds: float) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "quant_assets_tests.resources.pooled_run", *map(str, seconds)],
            cwd=PROJECT_ROOT,
            env={**os.environ, "QUANT_ASSETS_HOME": str(home)},
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            start_new_session=True,
        )
        self.lines: list[str] = []
        self._grown = threading.Condition()
        threading.Thread(target=self._follow, daemon=True).start()

    def _follow(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            with self._grown:
                self.lines.append(line.strip())
                self._grown.notify_all()

    def wait_for(self, word: str, timeout_s: float = 90) -> str:
        """The first line that begins with `word`."""

        def found() -> str | None:
            return next((line for line in self.lines if line.startswith(word)), None)

        with self._grown:
            assert self._grown.wait_for(found, timeout_s), (word, self.lines)
            return str(found())

    def end(self, number: signal.Signals) -> None:
        """Send a signal and require that the process and its descendants end in time."""
        started = below(self.process.pid)
        self.process.send_signal(number)
        self.process.wait(timeout=PROMISED_S)
        assert not survivors(started)


@pytest.fixture
def instance(tmp_path: Path) -> Iterator[dg.DagsterInstance]:
    with dagster_instance(Settings(home=tmp_path / "home")) as made:
        yield made


def test_after_every_kill_the_next_start_completes(tmp_path: Path):
    seed = int(os.environ.get("KILL_SEED", random.SystemRandom().randrange(10**6)))
    print(f"KILL_SEED={seed}")
    chance = random.Random(seed)
    home = tmp_path / "home"
    kills = [(told, pool) for told in SIGNALS for pool in ("device", "warehouse")]
    chance.shuffle(kills)
    for told, pool in itertools.islice(itertools.cycle(kills), KILLS):
        victim = Process(home, *((600, 0) if pool == "device" else (0, 600)))
        # While the step runs, or at any point before it.
        victim.wait_for(pool if chance.random() < 0.75 else "started")
        time.sleep(chance.random() * 0.3)
        victim.end(told)
    last = Process(home, 0, 0)
    last.wait_for("finished")
    assert last.process.wait(timeout=60) == 0
    with dagster_instance(Settings(home=home)) as instance:
        unfinished = [run for run in instance.get_runs() if not run.is_finished]
        assert not unfinished
        for key in instance.event_log_storage.get_concurrency_keys():
            assert not instance.event_log_storage.get_concurrency_info(key).claimed_slots


def test_a_killed_run_is_ended_with_its_reason_and_a_live_one_is_left_alone(
    instance: dg.DagsterInstance, tmp_path: Path
):
    victim, survivor = (Process(tmp_path / "home", 600, 600) for _ in range(2))
    for process in (victim, survivor):
        process.wait_for("started")
    # One of them has the slot; the other waits for it without spinning.
    deadline = time.monotonic() + 60
    while not (holders := [p for p in (victim, survivor) if p.lines[-1].startswith("device")]):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    (holder,) = holders
    waiting = survivor if holder is victim else victim
    before = psutil.Process(waiting.process.pid).cpu_times()
    time.sleep(2)
    after = psutil.Process(waiting.process.pid).cpu_times()
    assert (after.user + after.system) - (before.user + before.system) < 1.0
    assert not end_dead_runs(instance), "both processes are alive"
    holder.process.kill()
    holder.process.wait()
    # The waiting process notices by itself; no new start is needed.
    waiting.wait_for("device", timeout_s=60)
    (dead,) = instance.get_runs(dg.RunsFilter(statuses=[dg.DagsterRunStatus.FAILURE]))
    messages = [entry.message for entry in instance.all_logs(dead.run_id)]
    assert any("was killed, or the machine went down" in message for message in messages)
    waiting.end(signal.SIGINT)
    assert waiting.process.returncode == 128 + signal.SIGINT


def test_the_pools_are_those_of_the_graph():
    assert {DEVICE_POOL, WAREHOUSE_POOL} == {"device", "warehouse"}


def _unfinished_run(instance: dg.DagsterInstance, **tags: str) -> str:
    run = instance.create_run_for_job(
        pooled_job(0, 0),
        tags={**process_tags(instance), run_processes.PROCESS_TAG: "0" * 32, **tags},
    )
    instance.event_log_storage.initialize_concurrency_limit_to_default("device")
    claim = instance.event_log_storage.claim_concurrency_slot("device", run.run_id, "measure")
    assert claim.is_claimed
    return run.run_id


def test_runs_of_other_machines_and_of_unknown_processes_stay(instance: dg.DagsterInstance):
    elsewhere = {HOST_TAG: "elsewhere", BOOT_TAG: "another"}
    for tags in (elsewhere, {run_processes.PROCESS_TAG: "../../victim"}):
        run_id = _unfinished_run(instance, **tags)
        assert not end_dead_runs(instance)
        assert instance.event_log_storage.get_concurrency_info("device").active_run_ids == {run_id}
        instance.event_log_storage.free_concurrency_slots_for_run(run_id)


def test_the_slots_of_finished_and_deleted_runs_are_freed(instance: dg.DagsterInstance):
    storage = instance.event_log_storage
    run_id = _unfinished_run(instance)
    run = instance.get_run_by_id(run_id)
    assert run is not None
    instance.report_run_canceled(run)
    assert not end_dead_runs(instance), "the run has already finished"
    assert not storage.get_concurrency_info("device").claimed_slots
    run_id = _unfinished_run(instance)
    instance.run_storage.delete_run(run_id)
    end_dead_runs(instance)
    assert not storage.get_concurrency_info("device").claimed_slots


def test_waiting_for_a_pool_is_announced_and_ends_with_an_error(
    instance: dg.DagsterInstance,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
):
    holder = _unfinished_run(instance, **{HOST_TAG: "elsewhere", BOOT_TAG: "another"})
    monkeypatch.setattr(executor, "ATTEMPT_EVERY_S", 0.02)
    monkeypatch.setattr(executor, "ANNOUNCED_AFTER_S", 0.05)
    run = instance.create_run_for_job(pooled_job(0, 0))
    with (
        PatientClaims(instance, run, limit_s=0.2) as claims,
        pytest.raises(ResourceError, match="elsewhere") as raised,
    ):
        while not claims.claim("device", "measure"):
            pass
    assert holder in raised.value.why
    assert "'device'" in caplog.text
    assert holder in caplog.text


def test_one_of_several_claims_at_the_same_moment_gets_the_slot(
    instance: dg.DagsterInstance, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    execute = sqlalchemy.engine.Connection.execute

    def slow(connection: Any, statement: Any, *arguments: Any, **options: Any) -> Any:
        """Leave time between finding a free slot and taking it."""
        result = execute(connection, statement, *arguments, **options)
        if "concurrency_slots" in (text := str(statement)) and text.startswith("SELECT"):
            time.sleep(0.2)
        return result

    monkeypatch.setattr(sqlalchemy.engine.Connection, "execute", slow)
    monkeypatch.setattr(executor, "ATTEMPT_EVERY_S", 0)
    instance.event_log_storage.initialize_concurrency_limit_to_default("device")
    runs = [instance.create_run_for_job(pooled_job(0, 0)) for _ in range(2)]
    together = threading.Barrier(len(runs))

    def claim(run: dg.DagsterRun) -> bool:
        # An instance of its own, as in another process: one instance serializes its statements.
        with (
            dagster_instance(Settings(home=tmp_path / "home")) as own,
            PatientClaims(own, run) as claims,
        ):
            together.wait(timeout=30)
            claimed = claims.claim("device", "measure")
            together.wait(timeout=30)
            return claimed

    with ThreadPoolExecutor(len(runs)) as threads:
        assert sum(threads.map(claim, runs)) == 1


def test_a_run_in_this_process_is_not_ended(
    instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
):
    with Path(os.devnull).open("wb") as nowhere:
        monkeypatch.setenv("REPORT_TO", str(nowhere.fileno()))
        assert execute_here(pooled_job(0, 0), instance).success
    assert not end_dead_runs(instance)
