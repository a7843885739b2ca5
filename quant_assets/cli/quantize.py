"""`quant-assets quantize`: one model, one format, one level, one file."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from quant_assets.cli.output import output_console, print_json
from quant_assets.cli.quantize_groupwise import (
    GroupwiseOptions,
    make_checkpoint,
    print_checkpoint,
)
from quant_assets.cli.worker_progress import Verbosity, WorkerProgress
from quant_assets.formats.gguf_levels import parse_level
from quant_assets.host.devices import Device
from quant_assets.models.source import resolve_source
from quant_assets.processes.session import WorkerSession
from quant_assets.quantize.gguf.job import (
    MOST_THREADS,
    GgufPlan,
    GgufPlanJob,
    QuantizeGgufJob,
    QuantizeGgufResult,
    plan_gguf,
    quantize_gguf,
)
from quant_assets.quantize.groupwise.job import DEFAULT_SAMPLES, DEFAULT_SEQUENCE_LENGTH, Engine
from quant_assets.settings import get_settings


class TargetFormat(StrEnum):
    """What a model can be quantized to."""

    GGUF = "gguf"
    GPTQ = "gptq"
    AWQ = "awq"


class OutputFormat(StrEnum):
    """How the result is printed on standard output."""

    HUMAN = "human"
    JSON = "json"


def quantize(
    model: Annotated[
        str, typer.Argument(help="Hub id, folder with safetensors, or F16/BF16/F32 GGUF file.")
    ],
    to: Annotated[TargetFormat, typer.Option(help="Target format.")] = TargetFormat.GGUF,
    level: Annotated[str, typer.Option(help="Quantization level, such as Q4_K_M.")] = "Q4_K_M",
    output_dir: Annotated[
        Path, typer.Option(help="Folder of the output file <model>-<LEVEL>.gguf.")
    ] = Path(),
    imatrix: Annotated[
        Path | None, typer.Option(help="Importance matrix (GGUF), needed by some levels.")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume/--no-resume", help="Go on with an interrupted run.")
    ] = True,
    threads: Annotated[
        int | None,
        typer.Option(help="Quantizing threads; all cores by default.", min=1, max=MOST_THREADS),
    ] = None,
    overwrite: Annotated[
        bool,
        typer.Option(help="GGUF: replace a file that was made of another model or is not known."),
    ] = False,
    bits: Annotated[int, typer.Option(help="GPTQ: 2, 3, 4 or 8; AWQ: 4.")] = 4,
    group_size: Annotated[
        int, typer.Option(help="Weights that share a scale: 32, 64, 128; GPTQ also -1, a row.")
    ] = 128,
    desc_act: Annotated[
        bool, typer.Option("--desc-act/--no-desc-act", help="GPTQ: order by activations.")
    ] = False,
    sym: Annotated[
        bool, typer.Option("--sym/--no-sym", help="GPTQ: zero point in the middle.")
    ] = True,
    engine: Annotated[
        Engine | None,
        typer.Option(help="AWQ: autoawq (default where it knows the model) or gptqmodel."),
    ] = None,
    calibration: Annotated[
        str | None,
        typer.Option(help="GPTQ, AWQ: text, JSONL or Parquet file, or hub:owner/name."),
    ] = None,
    calibration_samples: Annotated[
        int, typer.Option(help="GPTQ, AWQ: windows of calibration text.", min=1)
    ] = DEFAULT_SAMPLES,
    sequence_length: Annotated[
        int, typer.Option(help="GPTQ, AWQ: tokens of a window.", min=8)
    ] = DEFAULT_SEQUENCE_LENGTH,
    device: Annotated[Device, typer.Option(help="GPTQ, AWQ: where to compute.")] = "auto",
    gate: Annotated[
        bool, typer.Option("--gate/--no-gate", help="GPTQ, AWQ: judge by perplexity.")
    ] = True,
    text: Annotated[
        Path | None,
        typer.Option(help="GPTQ, AWQ: file to measure perplexity on; WikiText-2 by default."),
    ] = None,
    dry_run: Annotated[bool, typer.Option(help="Print the plan and write nothing.")] = False,
    output_format: Annotated[
        OutputFormat, typer.Option("--format", help="Form of the result on standard output.")
    ] = OutputFormat.HUMAN,
    verbosity: Annotated[
        Verbosity, typer.Option(help="What is shown on standard error.")
    ] = Verbosity.NORMAL,
) -> None:
    """Quantize a model to a GGUF file, or to a GPTQ or AWQ folder; both resumable.

    The record <file>.job.json says which job made a GGUF file: the same job finds it done, and
    another model's file of the same name is not replaced without --overwrite.

    GPTQ and AWQ folders get the name of their job inside the output folder; as JSON the result is
    their manifest.

    Progress goes to standard error, the result to standard output; as JSON it has the fields of
    `QuantizeGgufResult`, with --dry-run those of `GgufPlan` (quant_assets.quantize.gguf.job).

    Exit codes: 0 done; 2 wrong usage; 3 bad input; 4 too little disk or memory, or a folder that
    cannot be written; 5 the worker died; 6 a file would be lost and nobody agreed to it; 7 the finished file failed its validation; 8 something
    is not installed; 1 anything else.
    """
    settings = get_settings()
    if to is not TargetFormat.GGUF:
        if dry_run:
            raise typer.BadParameter(
                "a plan is printed for --to gguf alone", param_hint="--dry-run"
            )
        made = make_checkpoint(
            resolve_source(model, settings),
            "gptq" if to is TargetFormat.GPTQ else "awq",
            GroupwiseOptions(
                bits=bits,
                group_size=group_size,
                desc_act=desc_act,
                sym=sym,
                engine=engine,
                calibration=calibration,
                samples=calibration_samples,
                sequence_length=sequence_length,
                device=device,
                gate=gate,
                text=text,
                threads=threads,
                resume=resume,
            ),
            output_dir,
            verbosity,
        )
        print_checkpoint(made, as_json=output_format is OutputFormat.JSON)
        return
    chosen = parse_level(level)
    source = resolve_source(model, settings)
    output = output_dir.resolve() / f"{source.name}-{chosen.name}.gguf"
    with WorkerProgress(verbosity) as progress:
        answer: GgufPlan | QuantizeGgufResult
        if dry_run:
            answer = plan_gguf(
                GgufPlanJob(
                    source=source.path,
                    source_kind=source.kind,
                    level=chosen.name,
                    output=output,
                    imatrix=imatrix,
                    threads=threads,
                ),
                session=WorkerSession(progress.show),
            )
        else:
            answer = quantize_gguf(
                QuantizeGgufJob(
                    source=source.path,
                    source_kind=source.kind,
                    source_identity=source.identity,
                    level=chosen.name,
                    output=output,
                    imatrix=imatrix,
                    threads=threads,
                    resume=resume,
                    record=True,
                    overwrite=overwrite,
                ),
                session=WorkerSession(progress.show),
            )
    console = output_console()
    if output_format is OutputFormat.JSON:
        print_json(answer.model_dump_json(indent=2))
    elif isinstance(answer, GgufPlan):
        console.print(_plan_table(answer))
        console.print(_facts(_plan_facts(answer)))
    else:
        console.print(_facts(_result_facts(answer)))


def _plan_table(plan: GgufPlan) -> Table:
    table = Table(title=f"{plan.architecture} to {plan.level}")
    for column in ("tensors", "type", "count", "M parameters", "MB"):
        right = column not in ("tensors", "type")
        table.add_column(column, justify="right" if right else "left")
    for group in plan.groups:
        table.add_row(
            group.role,
            group.tensor_type,
            str(group.count),
            f"{group.n_parameters / 1e6:,.2f}",
            f"{group.size_bytes / 1e6:,.2f}",
        )
    return table


def _plan_facts(plan: GgufPlan) -> dict[str, str]:
    return {
        "file size": f"{plan.file_bytes:,} bytes ({plan.file_bytes / 1e9:.3f} GB)",
        "parameters": f"{plan.n_parameters:,}",
        "bits per weight": f"{plan.bits_per_weight:.4f}",
        "intermediate type": plan.intermediate,
        "types decided by": f"llama.cpp ({plan.type_policy})",
        "time estimate": f"{plan.estimated_seconds:,.1f} s of quantizing",
        "memory estimate": f"{plan.estimated_peak_bytes / 1e9:.2f} GB at its highest",
    }


def _result_facts(result: QuantizeGgufResult) -> dict[str, str]:
    types = ", ".join(f"{name} {count}" for name, count in result.tensor_types.items())
    facts = {
        "file": str(result.output) + (" (found whole, nothing was done)" if result.reused else ""),
        "size": f"{result.bytes:,} bytes ({result.bytes / 1e9:.3f} GB)",
        "SHA-256": result.sha256,
        "architecture": result.architecture,
        "level": result.level,
        "parameters": f"{result.n_parameters:,}",
        "bits per weight": f"{result.bits_per_weight:.4f}",
        "tensors": types,
        "types decided by": f"llama.cpp ({result.type_policy})",
        "validated": f"yes, it generated {result.generated_text!r}" if result.validated else "no",
        "time": f"{result.seconds:.1f} s ({result.cpu_seconds:.1f} s of CPU)",
        "peak memory": f"{result.peak_rss_bytes / 1e9:.2f} GB",
    }
    if result.resumed_from_layer is not None:
        facts["resumed"] = f"after {result.resumed_from_layer} of {result.n_layers} layers"
    return facts


def _facts(facts: dict[str, str]) -> Table:
    table = Table(show_header=False, box=None)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for name, value in facts.items():
        table.add_row(name, value)
    return table
