"""Memory as llama.cpp's own allocator reserves it, asked of a worker from a GGUF header alone."""

from pathlib import Path
from typing import Final, Literal

from pydantic import BaseModel, Field

from quant_assets.capacity.memory import Serving
from quant_assets.errors import InputError
from quant_assets.host.devices import Device
from quant_assets.processes.session import UNATTENDED, WorkerSession
from quant_assets.processes.supervisor import run_worker

MAX_CELLS: Final = 2**23
"""Cache cells of one question: llama.cpp keeps about 50 bytes for each, even where it only plans."""

MAX_VOCABULARY: Final = 2**22
"""Tokens of a model in question: llama.cpp loads every token's name, and the largest has a million."""

_WORKER = "llama_cpp.memory"
_STALL_TIMEOUT_S = 120.0  # an answer takes a second


class AllocationJob(BaseModel):
    """Ask llama.cpp what a model takes under each of `servings`.

    `model` is a GGUF file; a `planned` allocation reads its header only, so that the tensors' data
    may be missing, and a `real` one loads the weights and allocates every buffer. `device` is where
    all layers lie.
    """

    model: Path
    servings: list[Serving] = Field(min_length=1)
    device: Device = "cpu"
    mode: Literal["planned", "real"] = "planned"


class DeviceAllocation(BaseModel):
    """Bytes in one kind of buffer (`CPU`, `CUDA0`, `CUDA_Host`); `is_host` means main memory.

    `state_bytes` is the KV cache, or the state of a recurrent model.
    """

    buffer: str
    is_host: bool
    weights_bytes: int
    state_bytes: int
    compute_bytes: int


class Allocation(BaseModel):
    """All buffers of one served copy. `logits_bytes`: the logits kept per sequence, in main memory."""

    devices: list[DeviceAllocation]
    logits_bytes: int

    @property
    def weights_bytes(self) -> int:
        """Weights on all devices."""
        return sum(device.weights_bytes for device in self.devices)

    @property
    def state_bytes(self) -> int:
        """KV cache and recurrent state on all devices."""
        return sum(device.state_bytes for device in self.devices)

    @property
    def compute_bytes(self) -> int:
        """Compute buffers on all devices, and the logits that are kept."""
        return sum(device.compute_bytes for device in self.devices) + self.logits_bytes

    @property
    def total_bytes(self) -> int:
        """Everything."""
        return self.weights_bytes + self.state_bytes + self.compute_bytes


class AllocationResult(BaseModel):
    """One allocation per serving of the job, in its order."""

    allocations: list[Allocation]
    library_versions: dict[str, str]


def ask_allocator(job: AllocationJob, *, session: WorkerSession = UNATTENDED) -> AllocationResult:
    """What llama.cpp reserves for `job`.

    Raises `InputError` where llama.cpp does not know the model or refuses a serving, or where the
    question itself would take too much memory, and `WorkerError` where it dies on it.
    """
    cells = max(serving.cells * serving.batch for serving in job.servings)
    if cells > MAX_CELLS:
        raise InputError(
            f"llama.cpp is not asked about a KV cache of {cells:,} cells.",
            f"Planning more than {MAX_CELLS:,} would itself take hundreds of megabytes.",
            "Choose a shorter context or a smaller batch.",
        )
    return run_worker(
        _WORKER, job, AllocationResult, session=session, stall_timeout_s=_STALL_TIMEOUT_S
    )
