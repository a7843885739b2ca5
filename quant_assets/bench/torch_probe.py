"""What torch finds on this machine, asked of a worker so that nobody else imports it."""

from pydantic import BaseModel

from quant_assets.bench.probe import Probe, ProbeJob
from quant_assets.host.devices import Device
from quant_assets.processes.environments import EnvironmentName
from quant_assets.processes.supervisor import run_worker


class TorchGpu(BaseModel):
    """A GPU that torch can use. `memory_bytes` is all of its memory."""

    name: str
    memory_bytes: int
    compute_capability: str


class TorchProbe(Probe):
    """What torch found; `cuda` is the version torch was built with."""

    gpus: list[TorchGpu]
    cuda: str | None
    threads: int

    @property
    def text(self) -> str:
        """One line for a log."""
        if self.device == "cpu":
            return f"CPU {self.cpu_name or 'unknown'}, {self.threads} threads; {self.versions}"
        gpus = ", ".join(
            f"{gpu.name} ({gpu.memory_bytes / 1e9:.0f} GB, compute capability "
            f"{gpu.compute_capability})"
            for gpu in self.gpus
        )
        return f"GPU {gpus}; CUDA {self.cuda}; {self.versions}"


def probe_torch(device: Device = "auto", environment: EnvironmentName = "gptq") -> TorchProbe:
    """Ask the torch of a worker environment what it can use.

    Raises `EnvironmentNotReady` when the environment is missing, or `device` is `cuda` and torch
    finds no GPU.
    """
    return run_worker("torch.probe", ProbeJob(device=device), TorchProbe, environment=environment)
