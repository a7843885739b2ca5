"""Run in a separate process: the allocations that llama.cpp logs for a model.

Prints one JSON line for each job: bytes of the KV cache, of the compute buffer, and of the logits
that are kept. The model has no weights (`no_alloc`), so a graph of any size is only planned.
"""

import json
import re
import sys
import tempfile
from pathlib import Path

import llama_cpp

from quant_assets.capacity.memory import Serving
from quant_assets.capacity.reference_models import reference_models
from quant_assets.capacity.update_gguf_mixtures import write_metadata_gguf
from quant_assets.workers.gguf import ggml

MIB = 2**20


def probe(path: Path, serving: Serving) -> dict[str, float]:
    with ggml.captured_log() as log:
        llama_cpp.llama_backend_init()
        model_parameters = llama_cpp.llama_model_default_params()
        model_parameters.no_alloc = True
        model_parameters.load_mode = llama_cpp.LLAMA_LOAD_MODE_NONE
        model_parameters.n_gpu_layers = 0
        model = llama_cpp.llama_model_load_from_file(str(path).encode(), model_parameters)
        parameters = llama_cpp.llama_context_default_params()
        parameters.n_ctx = serving.cells * serving.batch
        parameters.n_seq_max = serving.batch
        parameters.n_batch = parameters.n_ubatch = serving.micro_batch
        parameters.flash_attn_type = int(serving.flash_attention)
        parameters.type_k = ggml.type_of_name(serving.kv_type_k)
        parameters.type_v = ggml.type_of_name(serving.kv_type_v)
        context = llama_cpp.llama_init_from_model(model, parameters)
        llama_cpp.llama_free(context)
        llama_cpp.llama_model_free(model)
    text = "".join(log)

    def mib(pattern: str) -> float:
        match = re.search(pattern + r" =\s*([\d.]+) MiB", text)
        assert match is not None, text
        return float(match[1]) * MIB

    return {
        "kv": mib(r"llama_kv_cache: size"),
        "compute": mib(r"compute buffer size"),
        "logits": mib(r"output buffer size"),
    }


for job in json.load(sys.stdin):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.gguf"
        write_metadata_gguf(reference_models()[job["model"]], path)
        answer = probe(path, Serving.model_validate(job["serving"]))
    sys.stdout.write(json.dumps(answer) + "\n")
