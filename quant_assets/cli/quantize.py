"""`quant-assets quantize`: a model to a GGUF file, or to a GPTQ or AWQ folder."""

from typing import Annotated, Literal

import typer
from pydantic import RootModel
from rich.table import Table

from quant_assets.artifacts.manifest import ArtifactManifest
from quant_assets.artifacts.store import ArtifactStore
from quant_assets.cli.groupwise_options import (
    CheckpointOptions,
    GptqOptions,
    GroupOptions,
    print_checkpoint,
)
from quant_assets.cli.options import takes_models
from quant_assets.cli.output import facts_table, output_console
from quant_assets.cli.presentation import Reply
from quant_assets.cli.target_options import (
    GgufOptions,
    OutputOptions,
    refuse_options_of_other_targets,
)
from quant_assets.cli.verbosity import Verbosity
from quant_assets.cli.worker_progress import WorkerProgress, fetched_source
from quant_assets.formats.gguf_levels import parse_level
from quant_assets.processes.memory import peak_memory_facts
from quant_assets.processes.session import WorkerSession
from quant_assets.quantize.gguf.job import (
    GgufPlan,
    GgufPlanJob,
    QuantizeGgufJob,
    QuantizeGgufResult,
    plan_gguf,
    quantize_gguf,
)
from quant_assets.quantize.groupwise.request import GroupwiseRequest, make_requested_artifact
from quant_assets.settings import get_settings

TargetFormat = Literal["gguf", "gptq", "awq"]


class QuantizeDocument(RootModel[QuantizeGgufResult | GgufPlan | ArtifactManifest]):
    """A GGUF file, its plan (--dry-run), or the manifest of a GPTQ or AWQ folder."""


@takes_models
def quantize(
    context: typer.Context,
    model: Annotated[
        str, typer.Argument(help="Hub id, folder with safetensors, or F16/BF16/F32 GGUF file.")
    ],
    *,
    to: Annotated[TargetFormat, typer.Option(help="Target format.")] = "gguf",
    gguf: GgufOptions,
    output: OutputOptions,
    groups: GroupOptions,
    gptq: GptqOptions,
    checkpoint: CheckpointOptions,
    dry_run: Annotated[bool, typer.Option(help="GGUF: print the plan and write nothing.")] = False,
    verbosity: Verbosity,
) -> Reply[QuantizeDocument]:
    """Quantize a model to a GGUF file, or to a GPTQ or AWQ folder; both resumable.

    The record <file>.job.json says which job made a GGUF file: running the same job again finds it
    done, and a file of the same name from another model is not replaced without --overwrite.

    GPTQ and AWQ folders are named after their job, inside the output folder; their JSON result is
    the manifest.

    Progress goes to standard error, the result to standard output; as JSON it has the fields of
    `QuantizeGgufResult`, with --dry-run those of `GgufPlan` (quant_assets.quantize.gguf.job).

    Exit codes: 0 done; 2 wrong usage; 3 bad input; 4 too little disk or memory, or a folder that
    cannot be written; 5 the worker died; 6 a file would be lost without your confirmation; 7 the
    result failed its validation; 8 something is not installed; 1 anything else.
    """
    refuse_options_of_other_targets(
        context, to, GgufOptions, GroupOptions, GptqOptions, CheckpointOptions
    )
    if to == "gguf":
        made_gguf = _quantize_gguf(model, gguf, output, verbosity, dry_run=dry_run)
        return Reply(QuantizeDocument(made_gguf), lambda _: _print_gguf(made_gguf))
    if dry_run:
        raise typer.BadParameter("only --to gguf can print a plan", param_hint="--dry-run")
    settings = get_settings()
    source = fetched_source(model, settings, verbosity)
    request = GroupwiseRequest(
        format=to,
        **dict(groups),
        **dict(gptq),
        **dict(checkpoint),
        threads=output.threads,
        resume=output.resume,
    )
    with WorkerProgress(verbosity) as progress:
        made = make_requested_artifact(
            source,
            request,
            ArtifactStore(output.output_dir.resolve()),
            cache=settings.cache,
            session=WorkerSession(progress.show),
        )
    return Reply(QuantizeDocument(made.manifest), lambda _: print_checkpoint(made))


def _quantize_gguf(
    model: str,
    gguf: GgufOptions,
    options: OutputOptions,
    verbosity: Verbosity,
    *,
    dry_run: bool,
) -> GgufPlan | QuantizeGgufResult:
    level = parse_level(gguf.level).name
    source = fetched_source(model, get_settings(), verbosity)
    output = options.output_dir.resolve() / f"{source.name}-{level}.gguf"
    with WorkerProgress(verbosity) as progress:
        session = WorkerSession(progress.show)
        if dry_run:
            plan = GgufPlanJob(
                source=source.path,
                source_kind=source.kind,
                level=level,
                output=output,
                imatrix=gguf.imatrix,
                threads=options.threads,
            )
            return plan_gguf(plan, session=session)
        return quantize_gguf(
            QuantizeGgufJob(
                source=source.path,
                source_kind=source.kind,
                source_identity=source.identity,
                level=level,
                output=output,
                imatrix=gguf.imatrix,
                threads=options.threads,
                resume=options.resume,
                record=True,
                overwrite=options.overwrite,
            ),
            session=session,
        )


def _print_gguf(answer: GgufPlan | QuantizeGgufResult) -> None:
    console = output_console()
    if isinstance(answer, GgufPlan):
        console.print(_plan_table(answer))
        console.print(facts_table(_plan_facts(answer)))
    else:
        console.print(facts_table(_result_facts(answer)))


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
        "time estimate": f"{plan.estimated_seconds:,.1f} s to quantize",
        "memory estimate": f"{plan.estimated_peak_bytes / 1e9:.2f} GB at peak",
    }


def _result_facts(result: QuantizeGgufResult) -> dict[str, str]:
    types = ", ".join(f"{name} {count}" for name, count in result.tensor_types.items())
    facts = {
        "file": str(result.output)
        + (" (already complete, nothing to do)" if result.reused else ""),
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
        **peak_memory_facts(result.peak_rss_bytes, result.peak_own_bytes, result.peak_vram_bytes),
    }
    if result.resumed_from_layer is not None:
        facts["resumed"] = f"after {result.resumed_from_layer} of {result.n_layers} layers"
    return facts
