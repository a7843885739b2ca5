"""Memory of the GPU, as `nvidia-smi` sees it from outside the process."""

from quant_assets.host.conditions import nvidia_smi


class GpuMemory:
    """How much the first GPU's used memory grew since this object was made.

    llama.cpp allocates its weights, its KV cache and its compute buffers when model and context
    are made and keeps them, so the growth after the runs is the peak.
    """

    def __init__(self) -> None:
        self._start = _used_bytes()

    def grown_bytes(self) -> int | None:
        """Bytes more than at the start; None without an NVIDIA driver."""
        now = _used_bytes()
        return None if now is None or self._start is None else now - self._start


def _used_bytes() -> int | None:
    lines = nvidia_smi("--query-gpu=memory.used")
    return int(lines[0]) * 2**20 if lines and lines[0].isdigit() else None
