"""The work of a decoding step of an artifact on a processor: what `host_fit` predicts the time of."""

from pathlib import Path
from typing import NamedTuple

from quant_assets.bench.variants import Variant
from quant_assets.formats.ggml_types import ggml_type
from quant_assets.formats.gguf_header import HeaderTensor, read_gguf_header
from quant_assets.models.inspection import ModelShape, inspect_model
from quant_assets.speed.host_fit import HostCell, WeightTraffic
from quant_assets.speed.needs import attention_products, touched_linear_parameters

_HEAD = "output.weight"
_EMBEDDING = "token_embd.weight"  # also the head of a model with tied embeddings
_BLOCK = "blk."
_EXPERTS = "_exps."
_UNQUANTIZED = "F16"


class StepLengths(NamedTuple):
    """Sequences that decode together, and the tokens of each one's prompt and answer."""

    batch: int
    prompt_tokens: int
    generated_tokens: int

    @property
    def context_tokens(self) -> int:
        """Tokens of a sequence at its end."""
        return self.prompt_tokens + self.generated_tokens


class HostArtifact(NamedTuple):
    """A model's artifact as a processor sees it: its shape and, of a GGUF file, its matrices."""

    model: str
    shape: ModelShape
    matrices: tuple[HeaderTensor, ...]


def open_host_artifact(model: str, path: Path) -> HostArtifact:
    """The artifact of `model` at `path`, a GGUF file or the folder of a checkpoint.

    Raises what `inspect_model` raises.
    """
    shape = inspect_model(path)
    return HostArtifact(model, shape, () if path.is_dir() else _matrices(path))


def host_cell(artifact: HostArtifact, variant: Variant, lengths: StepLengths) -> HostCell:
    """The average decoding step of `variant`, which runs `artifact`: half of the answer is there."""
    shape, batch = artifact.shape, lengths.batch
    depth = lengths.prompt_tokens + lengths.generated_tokens / 2
    with_k, with_v = attention_products(shape, depth)
    return HostCell(
        model=artifact.model,
        variant=variant.name,
        backend=variant.backend,
        batch=batch,
        prompt_tokens=lengths.prompt_tokens,
        generated_tokens=lengths.generated_tokens,
        layers=shape.n_layers,
        weights=_traffic(artifact, variant, batch),
        k_type=variant.cache_type_k.upper(),
        k_products=batch * with_k,
        v_type=variant.cache_type_v.upper(),
        v_products=batch * with_v,
    )


def _matrices(path: Path) -> tuple[HeaderTensor, ...]:
    """The tensors of a GGUF file that a step multiplies with, the input embedding left out."""
    tensors = read_gguf_header(path).tensors
    head = _HEAD if any(tensor.name == _HEAD for tensor in tensors) else _EMBEDDING
    return tuple(
        tensor
        for tensor in tensors
        if tensor.name == head
        or (tensor.name.startswith(_BLOCK) and sum(extent > 1 for extent in tensor.shape) >= 2)
    )


def _traffic(artifact: HostArtifact, variant: Variant, batch: int) -> tuple[WeightTraffic, ...]:
    shape, quantization = artifact.shape, variant.quantization
    if quantization is not None:
        head = shape.vocab_size * shape.hidden_size
        return (
            WeightTraffic(
                quantization.name,
                quantization.bits_per_weight(),
                touched_linear_parameters(shape, batch),
                touched_linear_parameters(shape, 1),
            ),
            WeightTraffic(_UNQUANTIZED, ggml_type(_UNQUANTIZED).bits_per_weight, head, head),
        )
    share = shape.n_experts_used / shape.n_experts if shape.n_experts else 1.0
    found: dict[str, tuple[float, float]] = {}
    for tensor in artifact.matrices:
        used = share if _EXPERTS in tensor.name else 1.0
        # Of E experts, of which a token uses k, a step of B tokens reads 1 - (1 - k / E)^B.
        read, multiplied = found.get(tensor.type_name, (0.0, 0.0))
        found[tensor.type_name] = (
            read + tensor.n_elements * (1 - (1 - used) ** batch),
            multiplied + tensor.n_elements * used,
        )
    return tuple(
        WeightTraffic(name, ggml_type(name).bits_per_weight, *found[name]) for name in sorted(found)
    )
