"""What the probes of all backends ask and say."""

from pydantic import BaseModel

from quant_assets.host.devices import Device


class ProbeJob(BaseModel):
    """The device that is wanted."""

    device: Device = "auto"


class Probe(BaseModel):
    """What a backend found. `device` is where models will run."""

    device: str
    cpu_name: str | None
    library_versions: dict[str, str]

    @property
    def versions(self) -> str:
        """The libraries with their versions, for a line of a log."""
        return ", ".join(f"{name} {version}" for name, version in self.library_versions.items())
