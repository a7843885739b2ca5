"""`quant-assets convert`: a model in one format to another."""

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from quant_assets.atomic_files import write_text_atomically
from quant_assets.capacity.quantization_types import quantization_type
from quant_assets.cli.output import message_console, print_path
from quant_assets.cli.quantize_groupwise import GroupwiseOptions, make_checkpoint, print_checkpoint
from quant_assets.cli.worker_progress import Verbosity, WorkerProgress
from quant_assets.errors import ConfirmationRequired
from quant_assets.formats.gguf_levels import parse_level
from quant_assets.formats.group_quantization import group_quantization
from quant_assets.host.devices import Device
from quant_assets.models.source import SourceModel, resolve_source
from quant_assets.models.stored_quantization import detect_quantization
from quant_assets.processes.session import WorkerSession
from quant_assets.quantize.conversion.convert import (
    ConversionLoss,
    ConversionTarget,
    conversion_loss,
    lineage,
    plain_folder,
)
from quant_assets.quantize.gguf.job import MOST_THREADS, QuantizeGgufJob, quantize_gguf
from quant_assets.quantize.groupwise.job import DEFAULT_SAMPLES, DEFAULT_SEQUENCE_LENGTH, Engine
from quant_assets.settings import get_settings


def convert(
    model: Annotated[str, typer.Argument(help="Hub id, model folder, artifact or GGUF file.")],
    to: Annotated[ConversionTarget, typer.Option(help="Target format.")],
    level: Annotated[str, typer.Option(help="GGUF: the level.")] = "Q4_K_M",
    bits: Annotated[int, typer.Option(help="GPTQ: 2, 3, 4 or 8; AWQ: 4.")] = 4,
    group_size: Annotated[int, typer.Option(help="GPTQ, AWQ: weights that share a scale.")] = 128,
    engine: Annotated[Engine | None, typer.Option(help="AWQ: autoawq or gptqmodel.")] = None,
    calibration: Annotated[
        str | None, typer.Option(help="GPTQ, AWQ: text file, or hub:owner/name.")
    ] = None,
    calibration_samples: Annotated[
        int, typer.Option(help="GPTQ, AWQ: windows of calibration text.", min=1)
    ] = DEFAULT_SAMPLES,
    sequence_length: Annotated[
        int, typer.Option(help="GPTQ, AWQ: tokens of a window.", min=8)
    ] = DEFAULT_SEQUENCE_LENGTH,
    device: Annotated[Device, typer.Option(help="GPTQ, AWQ: where to compute.")] = "auto",
    gate: Annotated[bool, typer.Option("--gate/--no-gate", help="Judge by perplexity.")] = True,
    text: Annotated[
        Path | None, typer.Option(help="GPTQ, AWQ: file to measure perplexity on.")
    ] = None,
    output_dir: Annotated[Path, typer.Option(help="Where the result goes.")] = Path(),
    threads: Annotated[int | None, typer.Option(help="Threads.", min=1, max=MOST_THREADS)] = None,
    overwrite: Annotated[
        bool, typer.Option(help="Replace what was made of another model or is not known.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Agree to a significant loss.")] = False,
    verbosity: Annotated[
        Verbosity, typer.Option(help="What is shown on standard error.")
    ] = Verbosity.NORMAL,
) -> None:
    """Convert between GGUF, GPTQ, AWQ and plain Hugging Face folders.

    What is lost is said first. Quantizing again what is quantized already, or to fewer than 4 bits,
    asks for agreement. Exit code 6: nobody agreed; the others, and records, are as of `quantize`.
    """
    settings = get_settings()
    source = resolve_source(model, settings)
    loss = conversion_loss(source.path, to, _target_bits(to, level, bits, group_size))
    _agree(loss, yes=yes)
    output = output_dir.resolve()
    with WorkerProgress(verbosity) as progress:
        plain = plain_folder(
            source,
            output / f"{source.name}-hf",
            settings,
            overwrite=overwrite,
            session=WorkerSession(progress.show),
        )
    origin = lineage(source, detect_quantization(source.path), loss)
    if to == "hf":
        print_path(plain.path)
    elif to == "gguf":
        print_path(_to_gguf(plain, level, output, origin, threads, verbosity, overwrite=overwrite))
    else:
        options = GroupwiseOptions(
            bits=bits, group_size=group_size, desc_act=False, sym=True, engine=engine,
            calibration=calibration, samples=calibration_samples, sequence_length=sequence_length,
            device=device, gate=gate, text=text, threads=threads, resume=True,
        )  # fmt: skip
        made = make_checkpoint(plain, to, options, output, verbosity, origin)
        print_checkpoint(made, as_json=False)


def _target_bits(to: ConversionTarget, level: str, bits: int, group_size: int) -> float:
    if to == "hf":
        return 16.0
    if to == "gguf":
        return quantization_type(parse_level(level).name).exact_bits_per_weight
    return group_quantization(to, bits, group_size).bits_per_weight()


def _agree(loss: ConversionLoss, *, yes: bool) -> None:
    message_console().print(loss.text)
    if not loss.significant or yes:
        return
    if not sys.stdin.isatty() or not typer.confirm("Convert nevertheless?", err=True):
        raise ConfirmationRequired(
            "Nothing was converted.",
            loss.text,
            "Convert the original model instead, or agree with --yes.",
        )


def _to_gguf(
    plain: SourceModel,
    level: str,
    output: Path,
    origin: dict[str, str],
    threads: int | None,
    verbosity: Verbosity,
    *,
    overwrite: bool,
) -> Path:
    chosen = parse_level(level)
    file = output / f"{plain.name}-{chosen.name}.gguf"
    with WorkerProgress(verbosity) as progress:
        quantize_gguf(
            QuantizeGgufJob(
                source=plain.path,
                source_kind=plain.kind,
                source_identity=plain.identity,
                level=chosen.name,
                output=file,
                threads=threads,
                record=True,
                overwrite=overwrite,
            ),
            session=WorkerSession(progress.show),
        )
    write_text_atomically(file.with_suffix(".lineage.json"), json.dumps(origin, indent=2))
    return file
