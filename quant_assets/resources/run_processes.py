"""The process that executes a run, and cleaning up runs whose process is gone.

A killed process leaves its runs "started" and their pool slots claimed, and every later run would
wait for these slots forever. So each executing process holds a lock file for as long as it lives,
and its runs name that file in their tags. When the lock is free, the process is gone: the system
releases a lock however its process ends, and unlike process ids, locks are not reused.
"""

import os
import socket
import time
import uuid
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path

import dagster as dg

# The statuses that this version of Dagster counts as unfinished; there is no public list.
from dagster._core.storage.dagster_run import NOT_FINISHED_STATUSES

# The storage class with methods that reassign the slots of a pool; others have no public way.
from dagster._core.storage.event_log.sql_event_log import SqlEventLogStorage

from quant_assets.errors import ResourceError
from quant_assets.host.locks import exclusive_lock

PROCESS_TAG = "quant_assets/process"
PID_TAG = "quant_assets/pid"
HOST_TAG = "quant_assets/host"
BOOT_TAG = "quant_assets/boot"
SETTLING_S = 60.0
"""A run that ended this long ago will not free its slots any more."""

_FOLDER = "run_processes"
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_held = ExitStack()
_own: dict[Path, str] = {}


def process_tags(instance: dg.DagsterInstance) -> dict[str, str]:
    """The tags that identify runs of this process; its lock file is held from now on.

    Raises `ResourceError` when the lock file cannot be written.
    """
    folder = Path(instance.root_directory) / _FOLDER
    if folder not in _own:
        name = uuid.uuid4().hex
        _held.enter_context(exclusive_lock(folder / name, "this process's runs", wait_s=0))
        _own[folder] = name
    return {
        PROCESS_TAG: _own[folder],
        PID_TAG: str(os.getpid()),
        HOST_TAG: socket.gethostname(),
        BOOT_TAG: _boot_id(),
    }


def end_dead_runs(instance: dg.DagsterInstance) -> list[dg.DagsterRun]:
    """End the unfinished runs whose process is gone, and free their pool slots.

    Runs of live processes, of other machines, and without tags of a process are left alone.
    Returns the runs that were ended.
    """
    ended = []
    gone: dict[str, bool] = {}
    unfinished = instance.get_runs(dg.RunsFilter(statuses=list(NOT_FINISHED_STATUSES)))
    for run in unfinished:
        if not _process_is_gone(instance, run.tags, gone):
            continue
        why = (
            f"The process that executed this run (process {run.tags.get(PID_TAG)} on "
            f"{run.tags.get(HOST_TAG)}) is gone: it was killed, or the machine went down."
        )
        instance.report_engine_event(why, run)
        if run.status == dg.DagsterRunStatus.CANCELING:
            instance.report_run_canceled(run, why)
        else:
            instance.report_run_failed(run, why)
        ended.append(run)
    _free_slots(instance, gone)
    for name, is_gone in gone.items():
        if is_gone:
            (Path(instance.root_directory) / _FOLDER / name).unlink(missing_ok=True)
    return ended


def slot_holder(instance: dg.DagsterInstance, pool: str) -> str:
    """The holder of a pool's slot, described for users who wait for it."""
    claimed = instance.event_log_storage.get_concurrency_info(pool).claimed_slots
    for run in filter(None, (instance.get_run_by_id(slot.run_id) for slot in claimed)):
        where = (
            f", process {run.tags[PID_TAG]} on {run.tags.get(HOST_TAG)}"
            if PID_TAG in run.tags
            else ""
        )
        return f"run {run.run_id} of {run.job_name}{where}"
    return "another run"


def _free_slots(instance: dg.DagsterInstance, gone: dict[str, bool]) -> None:
    storage = instance.event_log_storage
    pools = storage.get_concurrency_keys()
    infos = [storage.get_concurrency_info(pool) for pool in pools]
    holders = {
        run_id
        for info in infos
        for run_id in info.active_run_ids | info.assigned_run_ids | info.pending_run_ids
    }
    for run_id in holders:
        record = instance.get_run_record_by_id(run_id)
        if record is None:
            dead = True
        elif not record.dagster_run.is_finished:
            dead = False
        elif PROCESS_TAG in record.dagster_run.tags:
            dead = _process_is_gone(instance, record.dagster_run.tags, gone)
        else:
            dead = time.time() - (record.end_time or 0.0) > SETTLING_S
        if dead:
            storage.free_concurrency_slots_for_run(run_id)
    if isinstance(storage, SqlEventLogStorage):
        # A process killed between releasing a slot and reassigning it leaves the slot unassigned.
        storage.assign_pending_steps([pool for pool in pools if storage.has_unassigned_slots(pool)])


def _process_is_gone(
    instance: dg.DagsterInstance, tags: Mapping[str, str], known: dict[str, bool]
) -> bool:
    """Whether the process named by `tags` is certainly gone."""
    name = tags.get(PROCESS_TAG)
    folder = Path(instance.root_directory) / _FOLDER
    # Anyone who launches a run can set its tags: only a plain name is taken as a file of `folder`.
    if name is None or not name.isalnum() or name == _own.get(folder):
        return False
    if name not in known:
        known[name] = _is_of_this_machine(tags) and _is_free(folder / name)
    return known[name]


def _is_of_this_machine(tags: Mapping[str, str]) -> bool:
    """Whether locks are conclusive: containers on one kernel share its locks under any host name."""
    same_boot = bool(_boot_id()) and tags.get(BOOT_TAG) == _boot_id()
    return same_boot or tags.get(HOST_TAG) == socket.gethostname()


def _is_free(lock: Path) -> bool:
    try:
        with exclusive_lock(lock, "a process's runs", wait_s=0):
            return True
    except ResourceError:
        return False


def _boot_id() -> str:
    try:
        return _BOOT_ID.read_text(encoding="ascii").strip()
    except OSError:
        return ""
