"""Run in a separate process: the sliding layers of architectures, as llama.cpp's loader logs them.

Reads a JSON object of architectures and their numbers of layers, and prints one of strings, L for a
layer with a sliding window and G for one without. The models have no layers' tensors: llama.cpp
settles the pattern before it misses them. Keys that it demands are added until it demands no more.
"""

import json
import re
import sys
import tempfile
from pathlib import Path

import gguf
import llama_cpp
import numpy as np

from quant_assets.workers.gguf import ggml

WINDOW = 1024
_MISSING = re.compile(r"key not found in model: (\S+)")
_WRONG_TYPE = re.compile(r"key (\S+) has wrong type \w+ but expected type (\w+)")
_LAYER = re.compile(r"layer\s+\d+ assigned to device CPU, is_swa = (\d)")
_ADDERS = {"f32": "add_float32", "bool": "add_bool", "u32": "add_uint32"}


def write(path: Path, architecture: str, n_layers: int, demanded: dict[str, str]) -> None:
    """A file with the keys that every architecture has, and those in `demanded` by type."""
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_block_count(n_layers)
    writer.add_context_length(4096)
    writer.add_embedding_length(64)
    writer.add_feed_forward_length(64)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_layer_norm_eps(1e-5)
    writer.add_sliding_window(WINDOW)
    writer.add_vocab_size(100)
    writer.add_tokenizer_model("none")
    for key, kind in demanded.items():
        if kind == "arr":
            writer.add_array(key, [1] * n_layers)
            continue
        getattr(writer, _ADDERS[kind])(key, 8 if key.endswith("expert_count") else 1)
    writer.add_tensor_info("token_embd.weight", (100, 64), np.dtype("float16"), 12800)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    with path.open("r+b") as stream:
        stream.truncate(stream.seek(0, 2) + 2 * 12800)


def log_of_loading(path: Path) -> str:
    """Everything that llama.cpp logs while it tries to load the file."""
    parameters = llama_cpp.llama_model_default_params()
    parameters.no_alloc = True
    parameters.load_mode = llama_cpp.LLAMA_LOAD_MODE_NONE
    parameters.n_gpu_layers = 0
    with ggml.captured_log() as log:
        llama_cpp.llama_backend_init()
        llama_cpp.llama_model_load_from_file(str(path).encode(), parameters)
    return "".join(log)


def pattern(architecture: str, n_layers: int, path: Path) -> str:
    """The pattern of one architecture."""
    demanded: dict[str, str] = {}
    while True:
        write(path, architecture, n_layers, demanded)
        log = log_of_loading(path)
        missing, wrong = _MISSING.search(log), _WRONG_TYPE.search(log)
        if wrong is not None:
            demanded[wrong[1]] = wrong[2]
        elif missing is not None and missing[1] not in demanded:
            demanded[missing[1]] = "u32"
        else:
            break
    layers = _LAYER.findall(log)[:n_layers]
    return "".join("L" if slides == "1" else "G" for slides in layers)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        answers = {
            architecture: pattern(architecture, n_layers, Path(folder) / "model.gguf")
            for architecture, n_layers in json.load(sys.stdin).items()
        }
    sys.stdout.write(json.dumps(answers))
