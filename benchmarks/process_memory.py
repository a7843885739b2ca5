"""Memory of a process tree."""

import psutil


def tree_memory(pid: int) -> tuple[int, int]:
    """(resident bytes of a process and its descendants, those not backed by files)."""
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
