"""Regenerate `data/gguf_mixtures.json`: `python -m quant_assets.capacity.update_gguf_mixtures`.

For every reference model a GGUF without weights is written, and a worker runs llama.cpp's quantizer
as a dry run: the types that it would assign to the tensors give a level's bits per weight. Run it
after an upgrade of llama.cpp and after a change of `data/reference_models.yaml`.
"""

import json
import tempfile
from pathlib import Path

import gguf
import numpy as np
from pydantic import BaseModel

from quant_assets.atomic_files import write_text_atomically
from quant_assets.capacity.reference_models import ReferenceModel, reference_models
from quant_assets.formats.gguf_levels import GGUF_LEVELS
from quant_assets.processes.supervisor import run_worker
from quant_assets.settings import get_settings


def write_metadata_gguf(model: ReferenceModel, path: Path) -> None:
    """Write an F16 GGUF of `model` whose weights are a hole in a sparse file.

    It takes a few kilobytes of disk, enough for a dry run of llama.cpp's quantizer.
    """
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(model.n_layers)
    writer.add_context_length(model.context_length)
    writer.add_embedding_length(model.hidden_size)
    writer.add_feed_forward_length(model.intermediate_size)
    writer.add_head_count(model.n_heads)
    writer.add_head_count_kv(model.n_kv_heads)
    writer.add_key_length(model.head_dim)
    writer.add_value_length(model.head_dim)
    writer.add_rope_dimension_count(model.head_dim)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(model.vocab_size)
    writer.add_tokenizer_model("none")
    for name, (length, rows) in model.matrices().items():
        writer.add_tensor_info(name, (rows, length), np.dtype("float16"), 2 * rows * length)
    for name, length in model.norms().items():
        writer.add_tensor_info(name, (length,), np.dtype("float32"), 4 * length)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    alignment = 32
    data_bytes = sum(
        -(-size // alignment) * alignment
        for size in (
            *(2 * rows * length for length, rows in model.matrices().values()),
            *(4 * length for length in model.norms().values()),
        )
    )
    with path.open("r+b") as stream:
        end = stream.seek(0, 2)
        stream.truncate(-(-end // alignment) * alignment + data_bytes)


class MixtureJob(BaseModel):
    """A dry run of llama.cpp's quantizer on a metadata-only GGUF, for each of the levels."""

    path: Path
    levels: list[str]


class MixtureResult(BaseModel):
    """Effective bits per weight by level."""

    bits_per_weight: dict[str, float]


def measure_mixtures(model: ReferenceModel, levels: list[str]) -> dict[str, float]:
    """Effective bits per weight of `levels` on `model`, by llama.cpp's own type policy."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.gguf"
        write_metadata_gguf(model, path)
        job = MixtureJob(path=path, levels=levels)
        return run_worker("gguf.mixtures", job, MixtureResult).bits_per_weight


def update_gguf_mixtures() -> None:
    """Measure every level on every reference model and rewrite `data/gguf_mixtures.json`."""
    levels = [level.name for level in GGUF_LEVELS]
    measured = {
        model.name: {
            level: round(bits, 4) for level, bits in measure_mixtures(model, levels).items()
        }
        for model in reference_models().values()
    }
    file = get_settings().data / "gguf_mixtures.json"
    write_text_atomically(file, json.dumps(measured, indent=1) + "\n")


if __name__ == "__main__":
    update_gguf_mixtures()
