"""Worker: greedy answers to prompts from a checkpoint on torch, through its chat template."""

from quant_assets.bench.jobs import OBEDIENCE, ChatJob, ChatReplies
from quant_assets.processes.protocol import EventChannel, serve
from quant_assets.workers.torch.models import (
    load_model,
    load_tokenizer,
    prepare_torch,
    report_vram,
    resolve_device,
)


def answer(job: ChatJob, channel: EventChannel) -> ChatReplies:
    """Load the model and answer every prompt in a fresh conversation."""
    prepare_torch(job.threads)
    device = resolve_device(job.device)
    report_vram(channel, device)
    model = load_model(job.model_path, job.format, device)
    tokenizer = load_tokenizer(job.model_path)
    replies: list[str] = []
    channel.plan_steps({OBEDIENCE: 100})
    channel.progress(OBEDIENCE, 0, len(job.prompts), "prompts")
    for number, prompt in enumerate(job.prompts):
        inputs = tokenizer.apply_chat_template(
            [{"role": "user", "content": prompt}],
            add_generation_prompt=True,
            return_tensors="pt",
            return_dict=True,
        ).to(device)
        output = model.generate(**inputs, do_sample=False, max_new_tokens=job.max_tokens)
        new_tokens = output[0, inputs["input_ids"].shape[1] :]
        replies.append(tokenizer.decode(new_tokens, skip_special_tokens=True))
        channel.progress(OBEDIENCE, number + 1, len(job.prompts), "prompts")
    return ChatReplies(replies=replies)


if __name__ == "__main__":
    serve(ChatJob, answer)
