"""Load a finished GGUF file with llama.cpp and generate from it."""

import ctypes
import time
from typing import Any

import numpy as np

from quant_assets.errors import CheckFailed
from quant_assets.models.integrity import check_gguf
from quant_assets.processes.protocol import EventChannel
from quant_assets.quantize.gguf.job import ValidateGgufJob, ValidateGgufResult
from quant_assets.workers.gguf.ggml import captured_log, reported_error

_CONTEXT_TOKENS = 64
_PIECE_BYTES = 256
_LOAD, _GENERATE = "load", "generate"


def validate(job: ValidateGgufJob, channel: EventChannel) -> ValidateGgufResult:
    """Load `job.path` and generate `job.n_tokens` tokens, greedily.

    Raises `InputError` if the file is damaged, `CheckFailed` if it does not load or its logits are
    not finite.
    """
    import llama_cpp

    started = time.perf_counter()
    check_gguf(job.path)
    llama_cpp.llama_backend_init()
    channel.plan_steps({_LOAD: 80, _GENERATE: 20})
    with captured_log() as log:
        channel.progress(_LOAD, 0, 1, "steps")
        model = _load(job)
        if not model:
            raise CheckFailed(
                f"llama.cpp cannot load {job.path.name}.",
                reported_error(log),
                "Delete the file and rebuild it; if that fails too, check the source model.",
            )
        channel.progress(_LOAD, 1, 1, "steps")
        channel.progress(_GENERATE, 0, 1, "steps")
        text = _generate(model, job)
        channel.progress(_GENERATE, 1, 1, "steps")
        memory = channel.memory_usage()
        n_parameters = int(llama_cpp.llama_model_n_params(model))
        llama_cpp.llama_model_free(model)
    return ValidateGgufResult(
        generated_text=text,
        n_parameters=n_parameters,
        seconds=time.perf_counter() - started,
        peak_rss_bytes=memory.peak_rss_bytes,
        peak_own_bytes=memory.peak_own_bytes,
        peak_vram_bytes=memory.peak_vram_bytes,
    )


def _load(job: ValidateGgufJob) -> Any:
    import llama_cpp

    parameters = llama_cpp.llama_model_default_params()
    parameters.n_gpu_layers = 0
    # Repacking would copy the weights, and one token gains nothing from its speed.
    parameters.use_extra_bufts = False
    return llama_cpp.llama_model_load_from_file(str(job.path).encode(), parameters)


def _generate(model: Any, job: ValidateGgufJob) -> str | None:
    """The generated text, or None for a model without logits."""
    import llama_cpp

    parameters = llama_cpp.llama_context_default_params()
    parameters.n_ctx = _CONTEXT_TOKENS
    parameters.n_batch = _CONTEXT_TOKENS
    if job.threads:
        parameters.n_threads = parameters.n_threads_batch = job.threads
    context = llama_cpp.llama_init_from_model(model, parameters)
    if not context:
        raise CheckFailed(
            f"llama.cpp loads {job.path.name} but cannot run it.",
            "It failed to create a context for the model.",
            "Check that this llama.cpp supports the model's architecture.",
        )
    vocabulary = llama_cpp.llama_model_get_vocab(model)
    n_vocabulary = llama_cpp.llama_vocab_n_tokens(vocabulary)
    tokens = _tokens(vocabulary, job.prompt)
    text = b""
    try:
        for _ in range(job.n_tokens):
            array = (ctypes.c_int32 * len(tokens))(*tokens)
            batch = llama_cpp.llama_batch_get_one(array, len(tokens))
            if llama_cpp.llama_decode(context, batch) != 0:
                raise CheckFailed(
                    f"The model in {job.path.name} cannot be evaluated.",
                    "llama.cpp failed on the first tokens.",
                    "Check that this llama.cpp supports the model's architecture.",
                )
            pointer = llama_cpp.llama_get_logits_ith(context, -1)
            if not pointer:
                return None
            logits = np.ctypeslib.as_array(pointer, shape=(n_vocabulary,))
            if not np.isfinite(logits).all():
                raise CheckFailed(
                    f"The model in {job.path.name} computes invalid numbers.",
                    "Its logits are infinite or NaN.",
                    "Use a level with more bits, or check the source model.",
                )
            tokens = [int(logits.argmax())]
            text += _piece(vocabulary, tokens[0])
    finally:
        llama_cpp.llama_free(context)
    return text.decode(errors="replace")


def _tokens(vocabulary: Any, prompt: str) -> list[int]:
    import llama_cpp

    encoded = prompt.encode()
    array = (ctypes.c_int32 * _CONTEXT_TOKENS)()
    count = llama_cpp.llama_tokenize(
        vocabulary, encoded, len(encoded), array, _CONTEXT_TOKENS // 2, True, False
    )
    return list(array[:count]) if count > 0 else [0]


def _piece(vocabulary: Any, token: int) -> bytes:
    import llama_cpp

    buffer = ctypes.create_string_buffer(_PIECE_BYTES)
    length = llama_cpp.llama_token_to_piece(vocabulary, token, buffer, _PIECE_BYTES, 0, True)
    return buffer.raw[: max(0, length)]
