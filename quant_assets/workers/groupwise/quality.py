"""Worker: perplexity and a short generation of checkpoints, optionally rounded to nearest.

Runs in the gptqmodel environment, whose kernels read GPTQ and AWQ on CPUs and GPUs.
"""

import io
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from quant_assets.bench.jobs import PERPLEXITY, QualityJob
from quant_assets.processes.protocol import EventChannel, serve
from quant_assets.quantize.conversion.plain_weights import UnpackJob
from quant_assets.quantize.groupwise.gate import (
    Checkpoint,
    CheckpointQualities,
    CheckpointQuality,
    CheckpointQualityJob,
    Rounding,
)
from quant_assets.workers.checkpoint.unpack import unpack
from quant_assets.workers.groupwise.rounding import rounded_to_nearest

_PROMPT = "The"
_GENERATED_TOKENS = 12


def measure(job: CheckpointQualityJob, channel: EventChannel) -> CheckpointQualities:
    """Measure every checkpoint, with one in memory at a time."""
    channel.plan_steps({_step(checkpoint): 1 for checkpoint in job.checkpoints})
    return CheckpointQualities(
        measured=[_measured(job, checkpoint, channel) for checkpoint in job.checkpoints]
    )


def _role(checkpoint: Checkpoint) -> str:
    if checkpoint.rounding is not None:
        return "rounded source"
    return "source" if checkpoint.format == "hf" else "artifact"


def _step(checkpoint: Checkpoint) -> str:
    return f"{PERPLEXITY} of the {_role(checkpoint)}"


def _measured(
    job: CheckpointQualityJob, checkpoint: Checkpoint, channel: EventChannel
) -> CheckpointQuality:
    """Load an artifact whole, generate and score; score plain weights layer by layer."""
    # Imported here: these libraries print on import, and events no longer use standard output now.
    from quant_assets.workers.torch.models import (
        holds_fused_matrices,
        load_model,
        load_tokenizer,
        prepare_torch,
        report_vram,
        resolve_device,
    )
    from quant_assets.workers.torch.quality import LogitsOf, logits_of_loaded, score_logits

    channel.log(f"Measuring the {_role(checkpoint)}.")
    prepare_torch(job.threads)
    device = resolve_device(job.device)
    report_vram(channel, device)
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
                "gptqmodel cannot load fused matrices; their dequantized weights are measured instead.",
                "warning",
            )
            model = _restored(checkpoint.path, device)
        else:
            model = load_model(path, checkpoint.format, device)
        inputs = tokenizer(_PROMPT, return_tensors="pt", return_token_type_ids=False).to(device)
        output = model.generate(**inputs, do_sample=False, max_new_tokens=_GENERATED_TOKENS)
        generated = tokenizer.decode(output[0], skip_special_tokens=True)
        n_vocab, logits_of = int(model.config.vocab_size), logits_of_loaded(model, device)

    def report(done: int, total: int) -> None:
        channel.progress(_step(checkpoint), done, total, "windows")

    measured = score_logits(scoring, n_vocab, logits_of, tokenizer, report)
    return CheckpointQuality(
        perplexity=measured.perplexity,
        standard_error=measured.perplexity_standard_error,
        scored_tokens=measured.scored_tokens,
        window_nll=measured.window_nll,
        generated_text=generated,
    )


def _restored(folder: Path, device: str) -> Any:
    """The model of a packed folder with its weights dequantized."""
    from quant_assets.workers.torch.models import load_model

    with TemporaryDirectory(dir=folder.parent, prefix=".restored-") as work:
        plain = Path(work) / "plain"
        unpack(UnpackJob(source=folder, output=plain), EventChannel(io.StringIO()))
        return load_model(str(plain), "hf", device).float()


def _round(layer: torch.nn.Module, rounding: Rounding | None) -> None:
    """Round the linear modules of a decoder layer, the ones that quantizers pack."""
    if rounding is None:
        return
    for module in layer.modules():
        if isinstance(module, torch.nn.Linear):
            module.weight.data = rounded_to_nearest(
                module.weight.data, rounding.bits, rounding.group_size, sym=rounding.sym
            )


if __name__ == "__main__":
    serve(CheckpointQualityJob, measure)
