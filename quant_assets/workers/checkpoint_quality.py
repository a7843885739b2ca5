"""Worker: perplexity of a checkpoint, also of one rounded to nearest, and a first sentence of it.

It runs in the environment of gptqmodel, whose kernels read GPTQ and AWQ on CPUs and GPUs.
"""

from typing import Any

import torch

from quant_assets.bench.jobs import QualityJob
from quant_assets.quantize.perplexity_gate import (
    Checkpoint,
    CheckpointQualities,
    CheckpointQuality,
    CheckpointQualityJob,
    Rounding,
)
from quant_assets.workers.protocol import EventChannel, serve

_PROMPT = "The"
_GENERATED_TOKENS = 12


def measure(job: CheckpointQualityJob, channel: EventChannel) -> CheckpointQualities:
    """Measure every checkpoint; one is in memory at a time."""
    return CheckpointQualities(
        measured=[_measured(job, checkpoint, channel) for checkpoint in job.checkpoints]
    )


def _measured(
    job: CheckpointQualityJob, checkpoint: Checkpoint, channel: EventChannel
) -> CheckpointQuality:
    """Load, round where asked, generate, and score."""
    # These libraries print while they are imported; only now does standard output carry no events.
    from quant_assets.workers.torch_models import (
        load_model,
        load_tokenizer,
        prepare_torch,
        resolve_device,
    )
    from quant_assets.workers.torch_quality import score_model

    what = {"hf": "source"}.get(checkpoint.format, "artifact")
    if checkpoint.rounding is not None:
        what = "rounded source"
    channel.log(f"Measuring the {what}.")
    prepare_torch(job.threads)
    device = resolve_device(job.device)
    path = str(checkpoint.path)
    if checkpoint.format == "hf":
        model = _load_source(path, device)
    else:
        model = load_model(path, checkpoint.format, device)
    if checkpoint.rounding is not None:
        _round(model, checkpoint.rounding)
    tokenizer = load_tokenizer(path)
    inputs = tokenizer(_PROMPT, return_tensors="pt", return_token_type_ids=False).to(device)
    output = model.generate(**inputs, do_sample=False, max_new_tokens=_GENERATED_TOKENS)
    measured = score_model(
        QualityJob(
            model_path=path,
            format=checkpoint.format,
            text_path=str(job.text),
            context=job.context,
            windows=job.windows,
            threads=job.threads,
            device=job.device,
        ),
        model,
        tokenizer,
        device,
        channel,
    )
    return CheckpointQuality(
        perplexity=measured.perplexity,
        standard_error=measured.perplexity_standard_error,
        scored_tokens=measured.scored_tokens,
        generated_text=tokenizer.decode(output[0], skip_special_tokens=True),
    )


def _load_source(path: str, device: str) -> Any:
    from transformers import AutoModelForCausalLM

    dtype = torch.float32 if device == "cpu" else "auto"
    model = AutoModelForCausalLM.from_pretrained(
        path, dtype=dtype, device_map=device, trust_remote_code=False
    )
    return model.eval()


def _round(model: Any, rounding: Rounding) -> None:
    """Round the linear modules of the decoder layers, those that the quantizers pack."""
    from quant_assets.workers.groupwise.rounding import rounded_to_nearest

    for layers in model.modules():
        if (
            isinstance(layers, torch.nn.ModuleList)
            and len(layers) == model.config.num_hidden_layers
        ):
            for module in layers.modules():
                if isinstance(module, torch.nn.Linear):
                    module.weight.data = rounded_to_nearest(
                        module.weight.data, rounding.bits, rounding.group_size, sym=rounding.sym
                    )
            return


if __name__ == "__main__":
    serve(CheckpointQualityJob, measure)
