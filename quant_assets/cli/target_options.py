"""What `quant-assets quantize` and `quant-assets convert` make, and where: shared options."""

from pathlib import Path
from typing import Annotated, ClassVar

import typer

from quant_assets.cli.options import CommandOptions
from quant_assets.quantize.gguf.job import MOST_THREADS


class TargetOptions(CommandOptions):
    """Options that only some target formats take."""

    targets: ClassVar[tuple[str, ...]]
    """The values of --to that the options are for."""


class GgufOptions(TargetOptions):
    """How a GGUF file is quantized."""

    targets = ("gguf",)

    level: Annotated[str, typer.Option(help="GGUF: quantization level, such as Q4_K_M.")] = "Q4_K_M"
    imatrix: Annotated[
        Path | None, typer.Option(help="GGUF: importance matrix, required by some levels.")
    ] = None


class OutputOptions(CommandOptions):
    """Where the result goes, and whether earlier work is used or replaced."""

    output_dir: Annotated[
        Path,
        typer.Option(help="Folder for the file <model>-<LEVEL>.gguf, or the model folder."),
    ] = Path()
    resume: Annotated[
        bool, typer.Option("--resume/--no-resume", help="Resume an interrupted run.")
    ] = True
    threads: Annotated[
        int | None,
        typer.Option(help="Quantizing threads; all cores by default.", min=1, max=MOST_THREADS),
    ] = None
    overwrite: Annotated[
        bool,
        typer.Option(
            help="Replace a file made from another model or of unknown origin; when converting, "
            "also a folder of another model's plain weights."
        ),
    ] = False


def refuse_options_of_other_targets(
    context: typer.Context, target: str, *groups: type[TargetOptions]
) -> None:
    """Raise `typer.BadParameter` for an option on the command line that `target` does not take."""
    for group in groups:
        if target in group.targets:
            continue
        for parameter in context.command.params:
            name = parameter.name or ""
            source = context.get_parameter_source(name)
            if name in group.model_fields and source is not None and source.name == "COMMANDLINE":
                raise typer.BadParameter(
                    f"only --to {' or '.join(group.targets)} takes it, the target is {target}",
                    param_hint=parameter.opts[0],
                )
