"""Worker: greedy answers to prompts from a GGUF file, through the chat template in the file."""

from pathlib import Path

from llama_cpp import Llama

from quant_assets.bench.jobs import OBEDIENCE, ChatJob, ChatReplies
from quant_assets.models.integrity import check_gguf
from quant_assets.processes.protocol import EventChannel, serve
from quant_assets.workers.llama_cpp import native as llama_native

_ALL_LAYERS = -1


def answer(job: ChatJob, channel: EventChannel) -> ChatReplies:
    """Load the model and answer every prompt in a fresh conversation."""
    device = llama_native.resolve_device(job.device)
    check_gguf(Path(job.model_path))
    model = Llama(
        job.model_path,
        n_ctx=job.context,
        n_threads=job.threads,
        n_threads_batch=job.threads,
        n_gpu_layers=_ALL_LAYERS if device == "cuda" else 0,
        type_k=llama_native.ggml_type(job.cache_type_k),
        type_v=llama_native.ggml_type(job.cache_type_v),
        flash_attn=llama_native.needs_flash_attention(job.cache_type_v),
        verbose=False,
    )
    replies: list[str] = []
    channel.plan_steps({OBEDIENCE: 100})
    channel.progress(OBEDIENCE, 0, len(job.prompts), "prompts")
    for number, prompt in enumerate(job.prompts):
        model.reset()
        completion = model.create_chat_completion(
            [{"role": "user", "content": prompt}], temperature=0.0, max_tokens=job.max_tokens
        )
        replies.append(completion["choices"][0]["message"]["content"] or "")
        channel.progress(OBEDIENCE, number + 1, len(job.prompts), "prompts")
    return ChatReplies(replies=replies)


if __name__ == "__main__":
    serve(ChatJob, answer)
