"""Worker: bits per weight that llama.cpp's type policy gives a model, from its metadata alone."""

from math import prod

from quant_assets.capacity.update_gguf_mixtures import MixtureJob, MixtureResult
from quant_assets.formats.gguf_levels import parse_level
from quant_assets.processes.protocol import EventChannel, serve
from quant_assets.workers.gguf import ggml
from quant_assets.workers.gguf.type_policy import types_from_dry_run


def handle(job: MixtureJob, channel: EventChannel) -> MixtureResult:
    """Evaluate every level; levels that need an importance matrix are evaluated as if with one."""
    metadata = ggml.GgufMetadata(job.path)
    try:
        tensors = metadata.tensors()
        n_parameters = sum(prod(tensor.shape) for tensor in tensors)
        bits: dict[str, float] = {}
        for number, name in enumerate(job.levels):
            channel.progress("asking llama.cpp", number, len(job.levels), "levels")
            level = parse_level(name)
            types = types_from_dry_run(metadata, tensors, level, has_imatrix=level.needs_imatrix)
            n_bytes = sum(
                ggml.row_bytes(new_type, tensor.shape[0]) * prod(tensor.shape[1:])
                for tensor, new_type in zip(tensors, types, strict=True)
            )
            bits[name] = 8 * n_bytes / n_parameters
        return MixtureResult(bits_per_weight=bits)
    finally:
        metadata.close()


if __name__ == "__main__":
    serve(MixtureJob, handle)
