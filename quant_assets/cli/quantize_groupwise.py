"""GPTQ and AWQ behind `quant-assets quantize` and `quant-assets convert`."""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from rich.table import Table

from quant_assets.artifacts.store import ArtifactStore
from quant_assets.cli.output import output_console, print_json
from quant_assets.cli.worker_progress import Verbosity, WorkerProgress, print_warning
from quant_assets.formats.artifact_formats import GroupwiseFormat
from quant_assets.formats.group_quantization import group_quantization
from quant_assets.host.devices import Device
from quant_assets.models.inspection import inspect_model
from quant_assets.models.source import SourceModel
from quant_assets.processes.session import WorkerSession
from quant_assets.quantize.groupwise.artifact import (
    GroupwiseArtifact,
    GroupwiseSpec,
    make_groupwise_artifact,
)
from quant_assets.quantize.groupwise.gate import PerplexityGate
from quant_assets.quantize.groupwise.job import Engine, groupwise_settings
from quant_assets.settings import get_settings
from quant_assets.texts.calibration import calibration_text
from quant_assets.texts.evaluation import evaluation_text


class GroupwiseOptions(NamedTuple):
    """What the command line says about a GPTQ or AWQ job."""

    bits: int
    group_size: int
    desc_act: bool
    sym: bool
    engine: Engine | None
    calibration: str | None
    samples: int
    sequence_length: int
    device: Device
    gate: bool
    text: Path | None
    threads: int | None
    resume: bool


def make_checkpoint(
    source: SourceModel,
    method: GroupwiseFormat,
    options: GroupwiseOptions,
    output_dir: Path,
    verbosity: Verbosity,
    lineage: Mapping[str, str] | None = None,
) -> GroupwiseArtifact:
    """Make the artifact `source` to `method` in `output_dir`, showing the worker's progress.

    Raises `CheckFailed` for one that the gate rejects.
    """
    chosen = groupwise_settings(
        group_quantization(method, options.bits, options.group_size),
        architecture=inspect_model(source.path).architecture,
        engine=options.engine,
        desc_act=options.desc_act,
        sym=options.sym,
        samples=options.samples,
        sequence_length=options.sequence_length,
    )
    settings = get_settings()
    calibration = calibration_text(options.calibration, settings.cache)
    print_warning(calibration.warning, verbosity)
    with WorkerProgress(verbosity) as progress:
        gate = PerplexityGate(
            text=evaluation_text(options.text or "auto", settings.cache),
            cache=settings.cache,
            threads=options.threads,
            device=options.device,
        )
        made = make_groupwise_artifact(
            GroupwiseSpec(source.name, source, chosen, calibration, lineage or {}),
            ArtifactStore(output_dir.resolve()),
            gate=gate if options.gate else None,
            threads=options.threads,
            device=options.device,
            resume=options.resume,
            session=WorkerSession(progress.show),
        ).valid()
    print_warning(made.quality_warning, verbosity)
    return made


def print_checkpoint(made: GroupwiseArtifact, *, as_json: bool) -> None:
    """The manifest on standard output, as JSON or as a table."""
    manifest = made.manifest
    if as_json:
        print_json(manifest.model_dump_json(indent=2))
        return
    facts = {
        "folder": str(made.folder) + (" (found, nothing was done)" if made.reused else ""),
        "size": f"{manifest.size_bytes:,} bytes ({manifest.size_bytes / 1e9:.3f} GB)",
        "parameters": f"{manifest.n_parameters:,}",
        "bits per weight": f"{manifest.bits_per_weight:.4f}",
        "calibrated on": f"{manifest.engine['calibration']}, "
        f"{manifest.engine['calibration tokens']} tokens",
        "time": f"{manifest.seconds:.1f} s",
        "peak memory": f"{(manifest.peak_rss_bytes or 0) / 1e9:.2f} GB",
    }
    checked = manifest.validation
    if manifest.perplexity is not None:
        facts |= {
            "perplexity": f"{manifest.perplexity:.3f} on {checked['text']}",
            "source's": f"{checked['source_perplexity']:.3f} "
            f"(ratio {checked['ratio_to_source']:.4f})",
            "rounding's": f"{checked['rounding_perplexity']:.3f} "
            f"(ratio {checked['ratio_to_rounding']:.4f})",
            "it generated": repr(checked["generated_text"]),
        }
    table = Table(show_header=False, box=None)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for name, value in facts.items():
        table.add_row(name, value)
    output_console().print(table)
