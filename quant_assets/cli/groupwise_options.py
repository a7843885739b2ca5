"""GPTQ and AWQ in `quant-assets quantize` and `quant-assets convert`: options and result."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer

from quant_assets.cli.output import facts_table, output_console
from quant_assets.cli.target_options import TargetOptions
from quant_assets.host.devices import Device
from quant_assets.processes.memory import peak_memory_facts
from quant_assets.quantize.groupwise.artifact import GroupwiseArtifact
from quant_assets.quantize.groupwise.job import FEWEST_TOKENS, Engine


class GroupOptions(TargetOptions):
    """How weights are packed."""

    targets = ("gptq", "awq")

    bits: Annotated[int, typer.Option(help="GPTQ: 2, 3, 4 or 8; AWQ: 4.")] = 4
    group_size: Annotated[
        int,
        typer.Option(
            help="GPTQ, AWQ: weights that share a scale: 32, 64 or 128; GPTQ also -1, a whole row."
        ),
    ] = 128


class GptqOptions(TargetOptions):
    """Settings that GPTQ alone has; AWQ refuses them with the reason."""

    targets = ("gptq", "awq")

    desc_act: Annotated[bool, typer.Option("--desc-act/--no-desc-act", help="GPTQ: act-order.")] = (
        False
    )
    sym: Annotated[
        bool | None,
        typer.Option(
            "--sym/--no-sym", help="GPTQ: symmetric quantization, the default.", show_default=False
        ),
    ] = None


class CheckpointOptions(TargetOptions):
    """How weights are calibrated and the result is checked."""

    targets = ("gptq", "awq")

    engine: Annotated[
        Engine | None,
        typer.Option(help="AWQ: autoawq (default for the models it supports) or gptqmodel."),
    ] = None
    calibration: Annotated[
        str | None,
        typer.Option(
            help="GPTQ, AWQ: text, JSONL or Parquet file, or hub:owner/name; WikiText-2 by default, "
            "with a warning."
        ),
    ] = None
    calibration_samples: Annotated[
        int | None,
        typer.Option(
            help="GPTQ, AWQ: windows of calibration text; by default 128, or as many as fit.", min=1
        ),
    ] = None
    sequence_length: Annotated[
        int | None,
        typer.Option(
            help="GPTQ, AWQ: tokens per window; by default 2048 for GPTQ and 512 for AWQ, within the "
            "model's context.",
            min=FEWEST_TOKENS,
        ),
    ] = None
    device: Annotated[Device, typer.Option(help="GPTQ, AWQ: where to compute.")] = "auto"
    gate: Annotated[
        bool,
        typer.Option("--gate/--no-gate", help="GPTQ, AWQ: reject a result of poor perplexity."),
    ] = True
    text: Annotated[
        Path | None,
        typer.Option(help="GPTQ, AWQ: file to measure perplexity on; WikiText-2 by default."),
    ] = None


def print_checkpoint(made: GroupwiseArtifact) -> None:
    """Print what the manifest says as a table on standard output."""
    manifest = made.manifest
    facts = {
        "folder": str(made.folder) + (" (already complete, nothing to do)" if made.reused else ""),
        "size": f"{manifest.size_bytes:,} bytes ({manifest.size_bytes / 1e9:.3f} GB)",
        "parameters": f"{manifest.n_parameters:,}",
        "bits per weight": f"{manifest.bits_per_weight:.4f}",
        "calibrated on": f"{manifest.engine['calibration']}, "
        f"{manifest.engine['calibration tokens']} tokens"
        + (f" ({used})" if (used := manifest.engine.get("calibration samples")) else ""),
        "time": f"{manifest.seconds:.1f} s",
        **peak_memory_facts(
            manifest.peak_rss_bytes, manifest.peak_own_bytes, manifest.peak_vram_bytes
        ),
    }
    checked = manifest.validation
    if manifest.perplexity is not None:
        facts |= {
            "perplexity": f"{manifest.perplexity:.3f}{_error(checked, 'perplexity')} on "
            f"{checked['text']}",
            "source perplexity": f"{checked['source_perplexity']:.3f}"
            f"{_error(checked, 'source_perplexity')} ({_ratio(checked, 'ratio_to_source')})",
            "perplexity of rounding": f"{checked['rounding_perplexity']:.3f}"
            f"{_error(checked, 'rounding_perplexity')} ({_ratio(checked, 'ratio_to_rounding')})",
            "generated": repr(checked["generated_text"]),
        }
    output_console().print(facts_table(facts))


def _error(checked: Mapping[str, object], name: str) -> str:
    """The standard error as llama.cpp prints it; nothing for a manifest of an older form."""
    error = checked.get(f"{name}_standard_error")
    return f" +/- {error:.3f}" if isinstance(error, float) else ""


def _ratio(checked: Mapping[str, object], name: str) -> str:
    """A ratio of perplexities with its 95% interval, where the manifest has one."""
    low, high = checked.get(f"{name}_low"), checked.get(f"{name}_high")
    reach = (
        f", {low:.4f} to {high:.4f}" if isinstance(low, float) and isinstance(high, float) else ""
    )
    return f"ratio {checked[name]:.4f}{reach}"
