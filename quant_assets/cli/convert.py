"""`quant-assets convert`: a model in one format to another."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from quant_assets.capacity.quantization_types import F16_BITS, quantization_type
from quant_assets.cli.groupwise_options import CheckpointOptions, GroupOptions, print_checkpoint
from quant_assets.cli.options import CommandOptions, takes_models
from quant_assets.cli.output import message_console, print_path
from quant_assets.cli.worker_progress import Verbosity, VerbosityOption, WorkerProgress
from quant_assets.errors import ConfirmationRequired
from quant_assets.formats.gguf_levels import parse_level
from quant_assets.formats.group_quantization import group_quantization
from quant_assets.models.source import resolve_source
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
    convert_model,
)
from quant_assets.quantize.gguf.job import MOST_THREADS
from quant_assets.quantize.groupwise.request import GroupwiseRequest
from quant_assets.settings import get_settings


class OutputOptions(CommandOptions):
    """Where the result goes, and what may be replaced."""

    output_dir: Annotated[Path, typer.Option(help="Folder for the result.")] = Path()
    threads: Annotated[
        int | None,
        typer.Option(help="Threads; all cores by default.", min=1, max=MOST_THREADS),
    ] = None
    overwrite: Annotated[
        bool,
        typer.Option(
            help="Replace a file or folder made from another model, or a file of unknown origin."
        ),
    ] = False
    yes: Annotated[bool, typer.Option("--yes", help="Accept a significant loss.")] = False


@takes_models
def convert(
    model: Annotated[str, typer.Argument(help="Hub id, model folder, artifact or GGUF file.")],
    to: Annotated[ConversionTarget, typer.Option(help="Target format.")],
    *,
    level: Annotated[str, typer.Option(help="GGUF: the level.")] = "Q4_K_M",
    groups: GroupOptions,
    checkpoint: CheckpointOptions,
    options: OutputOptions,
    verbosity: VerbosityOption = Verbosity.NORMAL,
) -> None:
    """Convert between GGUF, GPTQ, AWQ and plain Hugging Face folders.

    The loss is reported first. Quantizing already quantized weights again, or to fewer than 4 bits,
    needs your confirmation. Exit code 6: not confirmed; other exit codes and records are those of
    `quantize`.
    """
    settings = get_settings()
    source = resolve_source(model, settings)
    target: HfTarget | GgufTarget | GroupwiseRequest
    if to == "hf":
        target, target_bits = HfTarget(), F16_BITS
    elif to == "gguf":
        target = GgufTarget(level=parse_level(level).name, threads=options.threads)
        target_bits = quantization_type(target.level).exact_bits_per_weight
    else:
        target = GroupwiseRequest(
            format=to, **dict(groups), **dict(checkpoint), threads=options.threads
        )
        target_bits = group_quantization(to, groups.bits, groups.group_size).bits_per_weight()
    loss = conversion_loss(source.path, to, target_bits)
    _confirm(loss, yes=options.yes)
    request = ConversionRequest(
        target=target, output=options.output_dir.resolve(), overwrite=options.overwrite
    )
    with WorkerProgress(verbosity) as progress:
        made = convert_model(source, request, loss, settings, session=WorkerSession(progress.show))
    if isinstance(made, Path):
        print_path(made)
    else:
        print_checkpoint(made, as_json=False)


def _confirm(loss: ConversionLoss, *, yes: bool) -> None:
    message_console().print(loss.text)
    if not loss.significant or yes:
        return
    if not sys.stdin.isatty() or not typer.confirm("Convert anyway?", err=True):
        raise ConfirmationRequired(
            "Nothing was converted.",
            loss.text,
            "Convert the original model instead, or accept the loss with --yes.",
        )
