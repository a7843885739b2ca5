"""What llama.cpp finds on this machine, asked of a worker so that nobody else loads it."""

from pydantic import BaseModel

from quant_assets.bench.settings import Device
from quant_assets.workers.supervisor import run_worker


class LlamaProbeJob(BaseModel):
    """The device that is wanted."""

    device: Device = "auto"


class LlamaProbe(BaseModel):
    """What llama.cpp found. `device` is where models will run, `build_flags` what it was built for."""

    device: str
    gpu_name: str | None
    cpu_name: str | None
    build_flags: str
    library_versions: dict[str, str]

    @property
    def text(self) -> str:
        """One line for a log."""
        versions = ", ".join(f"{name} {version}" for name, version in self.library_versions.items())
        name = self.gpu_name if self.device == "cuda" else self.cpu_name
        return f"{self.device}: {name or 'unknown'}; {versions}; {self.build_flags}"


def probe_llama_cpp(device: Device = "auto") -> LlamaProbe:
    """Ask the installed llama.cpp what it can use.

    Raises `EnvironmentNotReady` when `device` is `cuda` and it was built without a GPU backend.
    """
    return run_worker("llama_probe", LlamaProbeJob(device=device), LlamaProbe)
