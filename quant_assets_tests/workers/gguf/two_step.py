"""The reference: llama.cpp's converter, then `llama_model_quantize`. Run as a child process.

`python two_step.py TASKS.json`, where the file is a list of {source, kind, ftype, output} and, if
wanted, {imatrix, threads}. The intermediate has the source's own float type, as the one-pass engine documents.
"""

import ctypes
import json
import sys
from pathlib import Path
from typing import Any

from quant_assets.workers.gguf.imatrix_file import read_imatrix


def convert(folder: Path, output: Path) -> None:
    """Write the model in `folder` as a GGUF in its own float type."""
    import gguf
    import torch
    from conversion import ModelBase, ModelType, get_model_architecture, get_model_class
    from safetensors import safe_open

    with safe_open(next(iter(sorted(folder.glob("*.safetensors")))), "pt") as shard:
        matrices = (shard.get_slice(name) for name in shard.keys())  # noqa: SIM118
        dtype = next(matrix.get_dtype() for matrix in matrices if len(matrix.get_shape()) > 1)
    ftype = {
        "BF16": gguf.LlamaFileType.MOSTLY_BF16,
        "F16": gguf.LlamaFileType.MOSTLY_F16,
        "F32": gguf.LlamaFileType.ALL_F32,
    }[dtype]
    parameters = ModelBase.load_hparams(folder, is_mistral_format=False)
    architecture = get_model_architecture(parameters, ModelType.TEXT)
    with torch.inference_mode():
        get_model_class(architecture)(folder, ftype, output).write()


def quantize(source: Path, output: Path, ftype: int, imatrix: Path | None, threads: int) -> None:
    """Quantize with `llama_model_quantize`, with the metadata that llama-quantize adds for an imatrix."""
    import llama_cpp

    parameters = llama_cpp.llama_model_quantize_default_params()
    parameters.ftype = ftype
    parameters.nthread = threads
    if imatrix is not None:
        matrix = read_imatrix(imatrix)
        values = matrix._values
        entries = (llama_cpp.llama_model_imatrix_data * (len(values) + 1))()
        for entry, (name, importances) in zip(entries, values.items(), strict=False):
            entry.name = name.encode()
            entry.data = importances.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
            entry.size = importances.size
        parameters.imatrix = entries
        header = matrix.header_values
        overrides = (llama_cpp.llama_model_kv_override * (len(header) + 1))()
        for override, (key, value) in zip(overrides, header.items(), strict=False):
            override.key = key.encode()
            if isinstance(value, int):
                override.tag = llama_cpp.LLAMA_KV_OVERRIDE_TYPE_INT
                override.value.val_i64 = value
            else:
                override.tag = llama_cpp.LLAMA_KV_OVERRIDE_TYPE_STR
                override.value.val_str = value.encode()
        parameters.kv_overrides = overrides
    failed = llama_cpp.llama_model_quantize(
        str(source).encode(), str(output).encode(), ctypes.byref(parameters)
    )
    if failed:
        raise RuntimeError(f"llama_model_quantize failed on {source}")


def main(tasks: list[dict[str, Any]]) -> None:
    """Run all tasks, converting each source once."""
    import llama_cpp
    from llama_cpp._logger import set_verbose

    set_verbose(False)
    llama_cpp.llama_backend_init()
    for task in tasks:
        source, output = Path(task["source"]), Path(task["output"])
        if task["kind"] == "hf":
            converted = output.parent / "converted" / f"{source.name}.gguf"
            if not converted.exists():
                converted.parent.mkdir(exist_ok=True)
                convert(source, converted)
            source = converted
        imatrix = Path(task["imatrix"]) if task.get("imatrix") else None
        quantize(source, output, task["ftype"], imatrix, task.get("threads", 2))


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text()))
