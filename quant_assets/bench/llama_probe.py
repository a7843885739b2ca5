"""What llama.cpp finds on this machine, asked of a worker so that nobody else loads it."""

from quant_assets.bench.probe import Probe, ProbeJob
from quant_assets.host.devices import Device
from quant_assets.processes.supervisor import run_worker


class LlamaProbe(Probe):
    """What llama.cpp found; `build_flags` is what it was built for."""

    gpu_name: str | None
    build_flags: str

    @property
    def text(self) -> str:
        """One line for a log."""
        name = self.gpu_name if self.device == "cuda" else self.cpu_name
        return f"{self.device}: {name or 'unknown'}; {self.versions}; {self.build_flags}"


def probe_llama_cpp(device: Device = "auto") -> LlamaProbe:
    """Ask the installed llama.cpp what it can use.

    Raises `EnvironmentNotReady` when `device` is `cuda` and it was built without a GPU backend.
    """
    return run_worker("llama_cpp.probe", ProbeJob(device=device), LlamaProbe)
