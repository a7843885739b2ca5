"""Worker: perplexity of a checkpoint, also of one rounded to nearest, and a first sentence of it.

It runs in the environment of gptqmodel, whose kernels read GPTQ and AWQ on CPUs and GPUs.
"""

import io
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from quant_assets.bench.jobs import QualityJob
from quant_assets.processes.protocol import EventChannel, serve
from quant_assets.quantize.conversion.plain_weights import UnpackJob
from quant_assets.quantize.groupwise.gate import (
    Checkpoint,
    CheckpointQualities,
    CheckpointQuality,
    CheckpointQualityJob,
    Rounding,
)

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
    """Load an artifact whole, let it generate and score it; score plain weights layer by layer."""
    # These libraries print while they are imported; only now does standard output carry no events.
    from quant_assets.workers.torch.models import (
        holds_fused_matrices,
        load_model,
        load_tokenizer,
        prepare_torch,
        resolve_device,
    )
    from quant_assets.workers.torch.quality import LogitsOf, logits_of_loaded, score_logits

    what = {"hf": "source"}.get(checkpoint.format, "artifact")
    if checkpoint.rounding is not None:
        what = "rounded source"
    channel.log(f"Measuring the {what}.")
    prepare_torch(job.threads)
    device = resolve_device(job.device)
    path = str(checkpoint.path)
    tokenizer = load_tokenizer(path)
    scoring = QualityJob(
        model_path=path,
        format=checkpoint.format,
        text_path=str(job.text),
        context=job.context,
        windows=job.windows,
        threads=job.threads,
        device=job.device,
    )
    generated = None
    logits_of: LogitsOf
    if checkpoint.format == "hf":
        from quant_assets.workers.groupwise.streaming import StreamedModel

        streamed = StreamedModel(checkpoint.path, device, torch.float32)
        n_vocab = int(streamed.config.vocab_size)

        logits_of = partial(
            streamed.logits, change=lambda layer: _round(layer, checkpoint.rounding)
        )
    else:
        if checkpoint.format == "gptq" and holds_fused_matrices(checkpoint.path):
            channel.log(
                "gptqmodel cannot load fused matrices; they are measured as restored weights.",
                "warning",
            )
            model = _restored(checkpoint.path, device)
        else:
            model = load_model(path, checkpoint.format, device)
        inputs = tokenizer(_PROMPT, return_tensors="pt", return_token_type_ids=False).to(device)
        output = model.generate(**inputs, do_sample=False, max_new_tokens=_GENERATED_TOKENS)
        generated = tokenizer.decode(output[0], skip_special_tokens=True)
        n_vocab, logits_of = int(model.config.vocab_size), logits_of_loaded(model, device)
    measured = score_logits(scoring, n_vocab, logits_of, tokenizer, channel)
    return CheckpointQuality(
        perplexity=measured.perplexity,
        standard_error=measured.perplexity_standard_error,
        scored_tokens=measured.scored_tokens,
        generated_text=generated,
    )


def _restored(folder: Path, device: str) -> Any:
    """The model with the weights that the packed ones of a folder stand for."""
    from quant_assets.workers.checkpoint.unpack import unpack
    from quant_assets.workers.torch.models import load_model

    with TemporaryDirectory(dir=folder.parent, prefix=".restored-") as work:
        plain = Path(work) / "plain"
        unpack(UnpackJob(source=folder, output=plain), EventChannel(io.StringIO()))
        return load_model(str(plain), "hf", device).float()


def _round(layer: torch.nn.Module, rounding: Rounding | None) -> None:
    """Round the linear modules of a decoder layer, those that the quantizers pack."""
    if rounding is None:
        return
    from quant_assets.workers.groupwise.rounding import rounded_to_nearest

    for module in layer.modules():
        if isinstance(module, torch.nn.Linear):
            module.weight.data = rounded_to_nearest(
                module.weight.data, rounding.bits, rounding.group_size, sym=rounding.sym
            )


if __name__ == "__main__":
    serve(CheckpointQualityJob, measure)
