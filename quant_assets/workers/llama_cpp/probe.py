"""Worker: the devices and build features that llama.cpp finds on this machine."""

import llama_cpp

from quant_assets.bench.probes import LlamaProbe, ProbeJob
from quant_assets.host.conditions import cpu_name, gpu_name
from quant_assets.processes.protocol import EventChannel, serve
from quant_assets.workers.llama_cpp.native import library_versions, resolve_device


def probe(job: ProbeJob, _: EventChannel) -> LlamaProbe:
    """Report the build, the processor and the GPU."""
    device = resolve_device(job.device)
    return LlamaProbe(
        device=device,
        gpu_name=gpu_name() if device == "cuda" else None,
        cpu_name=cpu_name(),
        build_flags=llama_cpp.llama_print_system_info().decode().strip(),
        library_versions=library_versions(),
    )


if __name__ == "__main__":
    serve(ProbeJob, probe, sample_memory=False)
