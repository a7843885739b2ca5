"""What torch finds on this machine, asked of a worker so that nobody else imports it."""

from pydantic import BaseModel

from quant_assets.bench.settings import Device
from quant_assets.workers.environments import EnvironmentName
from quant_assets.workers.supervisor import run_worker


class TorchProbeJob(BaseModel):
    """The device that is wanted."""

    device: Device = "auto"


class TorchGpu(BaseModel):
    """A GPU that torch can use. `memory_bytes` is all of its memory."""

    name: str
    memory_bytes: int
    compute_capability: str


class TorchProbe(BaseModel):
    """What torch found. `device` is where models will run; `cuda` the version torch was built with."""

    device: str
    gpus: list[TorchGpu]
    cuda: str | None
    cpu_name: str | None
    threads: int
    library_versions: dict[str, str]

    @property
    def text(self) -> str:
        """One line for a log."""
        versions = ", ".join(f"{name} {version}" for name, version in self.library_versions.items())
        if self.device == "cpu":
            return f"CPU {self.cpu_name or 'unknown'}, {self.threads} threads; {versions}"
        gpus = ", ".join(
            f"{gpu.name} ({gpu.memory_bytes / 1e9:.0f} GB, compute capability "
            f"{gpu.compute_capability})"
            for gpu in self.gpus
        )
        return f"GPU {gpus}; CUDA {self.cuda}; {versions}"


def probe_torch(device: Device = "auto", environment: EnvironmentName = "gptq") -> TorchProbe:
    """Ask the torch of a worker environment what it can use.

    Raises `EnvironmentNotReady` when the environment is missing, or `device` is `cuda` and torch
    finds no GPU.
    """
    return run_worker(
        "torch_probe", TorchProbeJob(device=device), TorchProbe, environment=environment
    )
