"""Probes of the backends: each asks a worker which devices and libraries it finds on this machine."""

from pydantic import BaseModel

from quant_assets.host.devices import Device
from quant_assets.processes.environments import EnvironmentName
from quant_assets.processes.supervisor import run_worker


class ProbeJob(BaseModel):
    """The requested device."""

    device: Device = "auto"


class Probe(BaseModel):
    """Findings that all backends share. `device` is the one that models will run on."""

    device: str
    cpu_name: str | None
    library_versions: dict[str, str]

    @property
    def versions(self) -> str:
        """The libraries with their versions, for a log line."""
        return ", ".join(f"{name} {version}" for name, version in self.library_versions.items())


class LlamaProbe(Probe):
    """llama.cpp's findings; `build_flags` are those it was compiled with."""

    gpu_name: str | None
    build_flags: str

    @property
    def text(self) -> str:
        """One log line."""
        name = self.gpu_name if self.device == "cuda" else self.cpu_name
        return f"{self.device}: {name or 'unknown'}; {self.versions}; {self.build_flags}"


class TorchGpu(BaseModel):
    """A GPU that torch can use. `memory_bytes` is its total memory."""

    name: str
    memory_bytes: int
    compute_capability: str


class TorchProbe(Probe):
    """torch's findings; `cuda` is the CUDA version that torch was built with."""

    gpus: list[TorchGpu]
    cuda: str | None
    threads: int

    @property
    def text(self) -> str:
        """One log line."""
        if self.device == "cpu":
            return f"CPU {self.cpu_name or 'unknown'}, {self.threads} threads; {self.versions}"
        gpus = ", ".join(
            f"{gpu.name} ({gpu.memory_bytes / 1e9:.0f} GB, compute capability "
            f"{gpu.compute_capability})"
            for gpu in self.gpus
        )
        return f"GPU {gpus}; CUDA {self.cuda}; {self.versions}"


def probe_llama_cpp(device: Device = "auto") -> LlamaProbe:
    """Ask the installed llama.cpp which devices it can use.

    Raises `EnvironmentNotReady` when `device` is `cuda` and it was built without a GPU backend.
    """
    return run_worker("llama_cpp.probe", ProbeJob(device=device), LlamaProbe)


def probe_torch(device: Device = "auto", environment: EnvironmentName = "gptq") -> TorchProbe:
    """Ask the torch of a worker environment which devices it can use.

    Raises `EnvironmentNotReady` when the environment is missing, or `device` is `cuda` and torch
    finds no GPU.
    """
    return run_worker("torch.probe", ProbeJob(device=device), TorchProbe, environment=environment)
