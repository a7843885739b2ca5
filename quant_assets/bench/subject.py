"""The subject of a measurement, its worker, and the lock that gives it the machine to itself."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, NamedTuple

from quant_assets.bench.artifact_finder import LocatedArtifact
from quant_assets.bench.settings import BenchSettings
from quant_assets.bench.variants import Variant
from quant_assets.host.locks import LONG_WAIT_S, exclusive_lock
from quant_assets.processes.environments import EnvironmentName
from quant_assets.settings import get_settings


class Subject(NamedTuple):
    """A model in one variant: its artifact, and the settings it is measured under."""

    model_name: str
    variant: Variant
    artifact: LocatedArtifact
    settings: BenchSettings

    def worker(self, task: Literal["bench", "quality", "chat"]) -> tuple[str, EnvironmentName]:
        """(worker module, worker environment) of a task."""
        if self.variant.format == "gguf":
            return f"llama_cpp.{task}", "main"
        return f"torch.{task}", "gptq"


@contextmanager
def machine_lock(locks: Path | None = None) -> Iterator[None]:
    """Hold the machine for one benchmark; other processes wait for their turn.

    Raises `ResourceError` when it does not become free within `LONG_WAIT_S` seconds.
    """
    folder = locks or get_settings().locks
    purpose = "the benchmarks of this machine, which run one at a time"
    with exclusive_lock(folder / "benchmark.lock", purpose, wait_s=LONG_WAIT_S):
        yield
