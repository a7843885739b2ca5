"""Resources of this host: disk space, memory, and folders that can be written."""

import shutil
import tempfile
from pathlib import Path

import psutil

from quant_assets.errors import ResourceError

_CGROUP_MEMORY = Path("/sys/fs/cgroup/memory.max")
_CGROUP_USED = Path("/sys/fs/cgroup/memory.current")


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
    """Bytes of memory still available to this process, within its container's limit."""
    available = int(psutil.virtual_memory().available)
    try:
        limit = int(_CGROUP_MEMORY.read_text()) - int(_CGROUP_USED.read_text())
    except (OSError, ValueError):
        return available
    return min(available, limit)


def check_memory(needed_bytes: int, available_bytes: int | None = None) -> None:
    """Raise `ResourceError` when the work needs more memory than is available."""
    available = available_memory() if available_bytes is None else available_bytes
    if available < needed_bytes:
        raise ResourceError(
            "There is too little memory.",
            f"The work needs about {needed_bytes / 1e9:.2f} GB, "
            f"{available / 1e9:.2f} GB are available.",
            "Close other programs, or use a machine with more memory.",
        )
