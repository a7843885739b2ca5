"""Memory of a process and of all that it started."""

import psutil


def tree_memory(pid: int) -> tuple[int, int]:
    """Resident bytes of a process and its descendants, and those that no file backs."""
    total = own = 0
    try:
        root = psutil.Process(pid)
        for process in [root, *root.children(recursive=True)]:
            memory = process.memory_info()
            total += memory.rss
            own += memory.rss - memory.shared
    except psutil.NoSuchProcess:
        pass
    return total, own
