"""Worker: the devices and libraries that torch finds on this machine."""

import torch

from quant_assets.bench.probes import ProbeJob, TorchGpu, TorchProbe
from quant_assets.host.conditions import cpu_name
from quant_assets.processes.protocol import EventChannel, serve
from quant_assets.workers.torch.models import library_versions, resolve_device


def probe(job: ProbeJob, _: EventChannel) -> TorchProbe:
    """Report GPUs, processor and library versions."""
    found = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
    return TorchProbe(
        device=resolve_device(job.device),
        gpus=[
            TorchGpu(
                name=gpu.name,
                memory_bytes=gpu.total_memory,
                compute_capability=f"{gpu.major}.{gpu.minor}",
            )
            for gpu in found
        ],
        cuda=torch.version.cuda,
        cpu_name=cpu_name(),
        threads=torch.get_num_threads(),
        library_versions=library_versions(),
    )


if __name__ == "__main__":
    serve(ProbeJob, probe, sample_memory=False)
