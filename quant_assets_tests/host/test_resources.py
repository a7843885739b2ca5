"""Memory available to this process, within its control groups and resource limits."""

import os
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from quant_assets.host.resources import _left_in_control_groups, available_memory
from quant_assets.settings import PROJECT_ROOT

MIB = 1 << 20
READ_THEN_ASK = """
import sys
from quant_assets.host.resources import available_memory
for name in sys.argv[1:]:
    with open(name, "rb") as stream:
        while stream.read(1 << 20):
            pass
print(available_memory())
"""


def available_in_child(*files: Path, before: Callable[[], object]) -> int:
    done = subprocess.run(
        [sys.executable, "-c", READ_THEN_ASK, *files],
        env={**os.environ, "PYTHONPATH": str(PROJECT_ROOT)},
        preexec_fn=before,
        capture_output=True,
        text=True,
        check=True,
    )
    return int(done.stdout)


@pytest.mark.parametrize("limit", [resource.RLIMIT_DATA, resource.RLIMIT_AS])
def test_a_resource_limit_of_the_process_counts(limit: int) -> None:
    granted = 2 << 30
    found = available_in_child(before=lambda: resource.setrlimit(limit, (granted, granted)))
    assert 0 < found < granted
    assert available_memory() <= psutil.virtual_memory().total


@pytest.fixture
def control_group() -> Iterator[Path]:
    """A control group of this machine limited to 256 MiB, of either version."""
    v1 = Path("/sys/fs/cgroup/memory/memory.limit_in_bytes").exists()
    folder = Path("/sys/fs/cgroup/memory" if v1 else "/sys/fs/cgroup") / f"test-{os.getpid()}"
    try:
        folder.mkdir()
    except OSError as error:
        pytest.skip(f"this user may not make control groups: {error}")
    try:
        name = "memory.limit_in_bytes" if v1 else "memory.max"
        try:
            (folder / name).write_text(str(256 * MIB))
        except OSError as error:
            pytest.skip(f"memory of control groups cannot be limited here: {error}")
        yield folder
    finally:
        folder.rmdir()


def test_cached_files_of_a_control_group_count_as_available(
    control_group: Path, tmp_path: Path
) -> None:
    larger = tmp_path / "larger-than-the-limit"
    with larger.open("wb") as stream:
        for _ in range(320):
            stream.write(bytes(MIB))

    def enter() -> None:
        (control_group / "cgroup.procs").write_text(str(os.getpid()))

    found = available_in_child(larger, before=enter)
    assert 64 * MIB < found <= 256 * MIB


@pytest.mark.parametrize(
    ("membership", "folder", "names", "expected"),
    [
        ("0::/", "", ("memory.max", "memory.current"), [700]),
        ("0::/a/b", "a", ("memory.max", "memory.current"), [700]),
        ("0::/../host/path", "", ("memory.max", "memory.current"), [700]),
        ("5:cpu,memory:/a\n3:cpu:/x", "memory/a",
         ("memory.limit_in_bytes", "memory.usage_in_bytes"), [700]),
        ("4:memory:/docker/of/the/host", "memory",
         ("memory.limit_in_bytes", "memory.usage_in_bytes"), [700]),
        ("3:cpu:/x", "memory", ("memory.limit_in_bytes", "memory.usage_in_bytes"), []),
    ],
)  # fmt: skip
def test_groups_of_both_versions_and_their_parents(
    tmp_path: Path, membership: str, folder: str, names: tuple[str, str], expected: list[int]
) -> None:
    (tmp_path / "self").write_text(membership + "\n")
    mount = tmp_path / "mount"
    group = mount / folder
    group.mkdir(parents=True)
    (group / names[0]).write_text("1000\n")
    (group / names[1]).write_text("500\n")
    (group / "memory.stat").write_text("anon 300\nactive_file 150\ninactive_file 50\nshmem 9\n")
    assert _left_in_control_groups(tmp_path / "self", mount) == expected


def test_an_unlimited_group_and_a_system_without_groups(tmp_path: Path) -> None:
    (tmp_path / "self").write_text("0::/\n")
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "memory.current").write_text("500\n")
    (tmp_path / "memory.stat").write_text("active_file 1\n")
    assert _left_in_control_groups(tmp_path / "self", tmp_path) == []
    assert _left_in_control_groups(tmp_path / "absent", tmp_path) == []
