"""`quant-assets convert`: a model in one format to another."""

import sys
from pathlib import Path
from typing import Annotated

import typer
from pydantic import BaseModel

from quant_assets.artifacts.manifest import ArtifactManifest
from quant_assets.capacity.quantization_types import F16_BITS, quantization_type
from quant_assets.cli.groupwise_options import (
    CheckpointOptions,
    GptqOptions,
    GroupOptions,
    print_checkpoint,
)
from quant_assets.cli.options import takes_models
from quant_assets.cli.output import message_console, print_path
from quant_assets.cli.presentation import Reply
from quant_assets.cli.target_options import (
    GgufOptions,
    OutputOptions,
    refuse_options_of_other_targets,
)
from quant_assets.cli.verbosity import Verbosity
from quant_assets.cli.worker_progress import WorkerProgress, fetched_source
from quant_assets.errors import ConfirmationRequired
from quant_assets.formats.gguf_levels import parse_level
from quant_assets.formats.group_quantization import group_quantization
from quant_assets.processes.quantization_job import QuantizationJob
from quant_assets.processes.session import WorkerSession
from quant_assets.quantize.conversion.convert import (
    ConversionLoss,
    ConversionTarget,
    conversion_loss,
)
from quant_assets.quantize.conversion.targets import (
    ConversionRequest,
    GgufTarget,
    HfTarget,
    check_conversion,
    convert_model,
)
from quant_assets.quantize.groupwise.request import GroupwiseRequest
from quant_assets.settings import get_settings


class ConvertDocument(BaseModel):
    """The file or folder that was made, the loss that was accepted, and GPTQ's or AWQ's manifest.

    `quantization_job` is the final state of the whole conversion, all its workers included.
    """

    path: Path
    loss: ConversionLoss
    manifest: ArtifactManifest | None = None
    quantization_job: QuantizationJob | None = None


@takes_models
def convert(
    context: typer.Context,
    model: Annotated[str, typer.Argument(help="Hub id, model folder, artifact or GGUF file.")],
    to: Annotated[ConversionTarget, typer.Option(help="Target format.")],
    *,
    gguf: GgufOptions,
    output: OutputOptions,
    groups: GroupOptions,
    gptq: GptqOptions,
    checkpoint: CheckpointOptions,
    yes: Annotated[bool, typer.Option("--yes", help="Accept a significant loss.")] = False,
    verbosity: Verbosity,
) -> Reply[ConvertDocument]:
    """Convert between GGUF, GPTQ, AWQ and plain Hugging Face folders.

    The loss is reported first. Quantizing already quantized weights again, or to fewer than 4 bits,
    needs your confirmation. Exit code 6: not confirmed; other exit codes and records are those of
    `quantize`.
    """
    refuse_options_of_other_targets(
        context, to, GgufOptions, GroupOptions, GptqOptions, CheckpointOptions
    )
    settings = get_settings()
    source = fetched_source(model, settings, verbosity)
    target: HfTarget | GgufTarget | GroupwiseRequest
    if to == "hf":
        target, target_bits = HfTarget(), F16_BITS
    elif to == "gguf":
        target = GgufTarget(
            level=parse_level(gguf.level).name,
            imatrix=gguf.imatrix,
            threads=output.threads,
            resume=output.resume,
        )
        target_bits = quantization_type(target.level).exact_bits_per_weight
    else:
        target = GroupwiseRequest(
            format=to,
            **dict(groups),
            **dict(gptq),
            **dict(checkpoint),
            threads=output.threads,
            resume=output.resume,
        )
        target_bits = group_quantization(to, groups.bits, groups.group_size).bits_per_weight()
    request = ConversionRequest(
        target=target, output=output.output_dir.resolve(), overwrite=output.overwrite
    )
    check_conversion(source, request, settings)
    loss = conversion_loss(source.path, to, target_bits)
    _confirm(loss, yes=yes)
    with WorkerProgress(verbosity) as progress:
        made = convert_model(source, request, loss, settings, session=WorkerSession(progress.show))
    if isinstance(made, Path):
        document = ConvertDocument(path=made, loss=loss, quantization_job=progress.job)
        return Reply(document, lambda answer: print_path(answer.path))
    document = ConvertDocument(
        path=made.folder, loss=loss, manifest=made.manifest, quantization_job=progress.job
    )
    return Reply(document, lambda _: print_checkpoint(made))


def _confirm(loss: ConversionLoss, *, yes: bool) -> None:
    # A loss is reported at every verbosity.
    message_console().print(loss.text)
    if yes or not loss.significant:
        return
    if not sys.stdin.isatty() or not typer.confirm("Convert anyway?", err=True):
        raise ConfirmationRequired(
            "Nothing was converted.",
            loss.text,
            "Convert the original model instead, or accept the loss with --yes.",
        )
