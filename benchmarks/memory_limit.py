"""A memory limit for a command and everything it starts, by a cgroup.

Tried in this order: a scope of the user's systemd, a cgroup of version 2 and one of version 1 made by
hand, each where this user may make one. Memory of a cgroup includes the page cache that its
processes fill, which the kernel drops as the limit nears; swap is ruled out, so that nothing moves
there unnoticed. A command whose own memory exceeds the limit is killed.
"""

import os
import secrets
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

PROBE_S = 20.0
REMOVAL_S = 10.0
_POLL_S = 0.05
_MOUNTS = Path("/proc/self/mountinfo")
_OWN_CGROUPS = Path("/proc/self/cgroup")
_JOIN = 'echo $$ > "$0/cgroup.procs" && exec "$@"'
# The scope is gone when its last process ends, so its figures are read inside it.
_RUN_IN_SCOPE = (
    'out=$0; "$@"; status=$?; '
    'folder=/sys/fs/cgroup$(sed -n "s/^0:://p" /proc/self/cgroup); '
    'cat "$folder/memory.peak" > "$out/peak" 2>/dev/null; '
    'cat "$folder/memory.events" > "$out/events" 2>/dev/null; '
    "exit $status"
)
_READ_SCOPE_LIMIT = 'cat "/sys/fs/cgroup$(sed -n "s/^0:://p" /proc/self/cgroup)/memory.max"'

Command = Sequence[str | Path]


class _Files(NamedTuple):
    """Names of a memory cgroup's files in one version, and the line that counts kills."""

    version: int
    limit: str
    swap_limit: str
    peak: str
    events: str


_V1 = _Files(
    1, "memory.limit_in_bytes", "memory.memsw.limit_in_bytes", "memory.max_usage_in_bytes",
    "memory.oom_control",
)  # fmt: skip
_V2 = _Files(2, "memory.max", "memory.swap.max", "memory.peak", "memory.events")


class MemoryLimit(NamedTuple):
    """A limit in force; `mechanism` is None when none could be made.

    `wrapped` turns a command into one that runs within the limit. `peak_bytes` is the highest memory
    of the cgroup with its page cache, `kills` how many processes the kernel killed for exceeding the
    limit; both are read after the command ended, and None where the kernel does not say.
    """

    limit_bytes: int
    mechanism: str | None
    wrapped: Callable[[Command], list[str]]
    peak_bytes: Callable[[], int | None]
    kills: Callable[[], int | None]


@contextmanager
def memory_limit(limit_bytes: int) -> Iterator[MemoryLimit]:
    """A limit of `limit_bytes` by whatever mechanism works here; it is removed at the end."""
    if _systemd_works(limit_bytes):
        with tempfile.TemporaryDirectory() as folder:
            yield _scope(limit_bytes, Path(folder))
        return
    cgroup, files = _new_cgroup(limit_bytes) or (None, None)
    if cgroup is None or files is None:
        yield MemoryLimit(limit_bytes, None, _as_text, lambda: None, lambda: None)
        return
    try:
        yield MemoryLimit(
            limit_bytes,
            f"cgroup v{files.version}",
            lambda command: ["/bin/sh", "-c", _JOIN, str(cgroup), *_as_text(command)],
            lambda: _number(cgroup / files.peak),
            lambda: _kills(cgroup / files.events),
        )
    finally:
        _remove(cgroup)


def _as_text(command: Command) -> list[str]:
    return [str(part) for part in command]


def _scope_command(limit_bytes: int) -> list[str]:
    return [
        "systemd-run", "--user", "--scope", "--quiet", "--collect",
        "-p", f"MemoryMax={limit_bytes}", "-p", "MemorySwapMax=0", "--",
    ]  # fmt: skip


def _systemd_works(limit_bytes: int) -> bool:
    """Whether a scope can be started and has the limit: its controller may be missing."""
    if shutil.which("systemd-run") is None:
        return False
    probe = [*_scope_command(limit_bytes), "/bin/sh", "-c", _READ_SCOPE_LIMIT]
    try:
        done = subprocess.run(probe, capture_output=True, text=True, timeout=PROBE_S)
    except (OSError, subprocess.TimeoutExpired):
        return False
    # The kernel rounds a limit down to whole pages.
    page = os.sysconf("SC_PAGE_SIZE")
    return done.returncode == 0 and done.stdout.strip() == str(limit_bytes // page * page)


def _scope(limit_bytes: int, folder: Path) -> MemoryLimit:
    return MemoryLimit(
        limit_bytes,
        "systemd-run --user --scope",
        lambda command: [
            *_scope_command(limit_bytes), "/bin/sh", "-c", _RUN_IN_SCOPE, str(folder),
            *_as_text(command),
        ],
        lambda: _number(folder / "peak"),
        lambda: _kills(folder / "events"),
    )  # fmt: skip


def _new_cgroup(limit_bytes: int) -> tuple[Path, _Files] | None:
    """A new cgroup with the limit that a process was seen to enter, or None."""
    for parent, files in _possible_parents():
        cgroup = parent / f"quant-assets-{os.getpid()}-{secrets.token_hex(4)}"
        try:
            cgroup.mkdir()
        except OSError:
            continue
        if _limited(cgroup, files, limit_bytes):
            return cgroup, files
        _remove(cgroup)
    return None


def _limited(cgroup: Path, files: _Files, limit_bytes: int) -> bool:
    try:
        (cgroup / files.limit).write_text(str(limit_bytes))
        swap = cgroup / files.swap_limit
        if swap.exists():
            # Version 1 counts memory and swap together, version 2 swap alone.
            swap.write_text(str(limit_bytes) if files is _V1 else "0")
        probe = ["/bin/sh", "-c", _JOIN, str(cgroup), "true"]
        return subprocess.run(probe, capture_output=True, timeout=PROBE_S).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


def _possible_parents() -> Iterator[tuple[Path, _Files]]:
    """Folders of the memory hierarchy, from this process's own cgroup upwards.

    Inside its own cgroup the limits that already apply stay in force. Version 2 lets only cgroups
    without processes of their own have limited children, so its own is often refused.
    """
    for mount, root, files in _memory_mounts():
        own = _own_cgroup(files)
        inside = own.removeprefix(root.rstrip("/")).strip("/") if own is not None else ""
        folder = mount / inside
        while True:
            if folder.is_dir():
                yield folder, files
            if folder == mount:
                break
            folder = folder.parent


def _memory_mounts() -> Iterator[tuple[Path, str, _Files]]:
    """(mount point, root of the mount, files) of each mounted memory hierarchy."""
    try:
        lines = _MOUNTS.read_text().splitlines()
    except OSError:
        return
    for line in lines:
        before, _, after = line.partition(" - ")
        kind, _, super_options = after.split(" ", 2)
        root, mount = before.split()[3:5]
        if kind == "cgroup2":
            yield Path(mount), root, _V2
        elif kind == "cgroup" and "memory" in super_options.split(","):
            yield Path(mount), root, _V1


def _own_cgroup(files: _Files) -> str | None:
    for line in _OWN_CGROUPS.read_text().splitlines():
        number, controllers, path = line.split(":", 2)
        if number == "0" if files is _V2 else "memory" in controllers.split(","):
            return path
    return None


def _number(file: Path) -> int | None:
    try:
        return int(file.read_text())
    except (OSError, ValueError):
        return None


def _kills(file: Path) -> int | None:
    try:
        for line in file.read_text().splitlines():
            name, _, count = line.partition(" ")
            if name == "oom_kill":
                return int(count)
    except (OSError, ValueError):
        pass
    return None


def _remove(cgroup: Path) -> None:
    """Remove a cgroup; ends what is still running inside it."""
    deadline = time.monotonic() + REMOVAL_S
    while time.monotonic() < deadline:
        try:
            cgroup.rmdir()
        except OSError:
            _kill_members(cgroup)
            time.sleep(_POLL_S)
        else:
            return


def _kill_members(cgroup: Path) -> None:
    try:
        members = [int(line) for line in (cgroup / "cgroup.procs").read_text().split()]
    except OSError:
        return
    for pid in members:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
