"""Resources of this host: disk space, memory, and folders that can be written."""

import resource
import shutil
import tempfile
from pathlib import Path

import psutil

from quant_assets.errors import ResourceError

_CGROUP_FILES = (
    ("memory.max", "memory.current"),
    ("memory.limit_in_bytes", "memory.usage_in_bytes"),
)


def check_output_folder(folder: Path) -> None:
    """Create `folder` and check that files can be written there; raises `ResourceError` if not."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ResourceError(
            f"The output folder {folder} cannot be written.",
            f"The system reported: {error.strerror}.",
            "Choose another folder with --output-dir, or change its permissions.",
        ) from error


def check_disk(folder: Path, needed_bytes: int) -> None:
    """Raise `ResourceError` when `folder`'s disk has less than `needed_bytes` free."""
    free = shutil.disk_usage(folder).free
    if free < needed_bytes:
        raise ResourceError(
            f"The disk of {folder} has too little space.",
            f"The output needs {needed_bytes / 1e9:.3f} GB, {free / 1e9:.3f} GB are free.",
            "Free some space, or choose another folder or a smaller level.",
        )


def available_memory() -> int:
    """Bytes of memory still available to this process: on the machine, and within its own limits.

    Limits are those of its control groups and resource limits (`ulimit -d`, `ulimit -v`).
    """
    return min(
        int(psutil.virtual_memory().available),
        *_left_in_control_groups(Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")),
        *_left_in_resource_limits(),
    )


def _left_in_control_groups(membership: Path, mount: Path) -> list[int]:
    """Bytes left in each control group that contains this process, of either version.

    The page cache does not count as used: the kernel frees it before it refuses memory.
    """
    left: list[int] = []
    for line in membership.read_text().splitlines() if membership.exists() else []:
        _, controllers, path = line.split(":", 2)
        if "memory" in controllers.split(","):
            root = mount / "memory"
        elif not controllers:
            root = mount
        else:
            continue
        # A container may see the path of its host, which it cannot follow; its own root exists.
        group = root / path.lstrip("/")
        for folder in (group, *group.parents):
            if not folder.is_relative_to(root):
                break
            for limit, used in _CGROUP_FILES:
                try:
                    cache = _page_cache(folder / "memory.stat")
                    left.append(_number(folder / limit) - _number(folder / used) + cache)
                except (OSError, ValueError):  # no such file, or no limit ("max")
                    continue
    return left


def _number(file: Path) -> int:
    return int(file.read_text())


def _page_cache(statistics: Path) -> int:
    """Bytes of cached files; version 1 prefixes the figures of a group and its descendants."""
    pairs = (line.split() for line in statistics.read_text().splitlines())
    figures = {name: int(value) for name, value in pairs}
    prefix = "total_" if "total_inactive_file" in figures else ""
    return sum(figures.get(f"{prefix}{kind}_file", 0) for kind in ("active", "inactive"))


def _left_in_resource_limits() -> list[int]:
    """Bytes left under the limits of this process on data and on address space."""
    memory = psutil.Process().memory_info()
    used = {
        resource.RLIMIT_DATA: getattr(memory, "data", memory.rss),  # Linux alone reports data
        resource.RLIMIT_AS: memory.vms,
    }
    limits = {name: resource.getrlimit(name)[0] for name in used}
    return [limit - used[name] for name, limit in limits.items() if limit != resource.RLIM_INFINITY]


def check_memory(needed_bytes: int, available_bytes: int | None = None) -> None:
    """Raise `ResourceError` when the work needs more memory than is available."""
    available = available_memory() if available_bytes is None else available_bytes
    if available < needed_bytes:
        raise ResourceError(
            "There is too little memory.",
            f"The work needs about {needed_bytes / 1e9:.2f} GB, "
            f"{available / 1e9:.2f} GB are available.",
            "Close other programs, use fewer threads (--threads), or a machine with more memory.",
        )
