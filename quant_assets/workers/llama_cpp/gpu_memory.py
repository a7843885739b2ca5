"""GPU memory, as `nvidia-smi` reports it from outside the process."""

from quant_assets.host.conditions import nvidia_smi


class GpuMemory:
    """Growth of the first GPU's used memory since this object was created.

    llama.cpp allocates weights, KV cache and compute buffers when it creates model and context, and
    keeps them, so the growth after the runs is the peak.
    """

    def __init__(self) -> None:
        self._start = _used_bytes()

    def growth_bytes(self) -> int | None:
        """Growth in bytes; None without an NVIDIA driver."""
        now = _used_bytes()
        return None if now is None or self._start is None else now - self._start


def _used_bytes() -> int | None:
    lines = nvidia_smi("--query-gpu=memory.used")
    return int(lines[0]) * 2**20 if lines and lines[0].isdigit() else None
