"""Quality, time and memory of GPTQ and AWQ artifacts of one model, as a table.

`.venv/bin/python benchmarks/groupwise_quality.py MODEL [--text FILE] [--group-size 64]`. Perplexity
is measured on the first windows of the text; ratios are to the source and to plain rounding at the
same bits and group size.
"""

import argparse
from pathlib import Path

from rich.console import Console
from rich.table import Table

from quant_assets.bench.evaluation_text import evaluation_text
from quant_assets.cli.worker_progress import Verbosity, WorkerProgress
from quant_assets.errors import CheckFailed
from quant_assets.formats.group_quantization import GroupQuantization
from quant_assets.models.source import resolve_source
from quant_assets.quantize.calibration import calibration_text
from quant_assets.quantize.groupwise import Engine, GroupwiseFormat, groupwise_settings
from quant_assets.quantize.groupwise_artifact import groupwise_job, make_groupwise_artifact
from quant_assets.quantize.manifest import MANIFEST_NAME, ArtifactManifest
from quant_assets.quantize.store import ArtifactStore
from quant_assets.settings import get_settings

RUNS: tuple[tuple[GroupwiseFormat, int, Engine, bool], ...] = (
    ("gptq", 4, "gptqmodel", False),
    ("gptq", 4, "gptqmodel", True),
    ("gptq", 3, "gptqmodel", False),
    ("gptq", 8, "gptqmodel", False),
    ("awq", 4, "autoawq", False),
    ("awq", 4, "gptqmodel", False),
)
COLUMNS = (
    "method", "bits", "group", "bits per weight", "perplexity", "to source", "to rounding",
    "seconds", "peak GB", "status",
)  # fmt: skip


def main() -> None:
    """Make every artifact, rejected ones too, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--text", type=Path, help="evaluation text; the default text otherwise")
    parser.add_argument("--group-size", type=int, default=64)
    parser.add_argument("--samples", type=int, default=32)
    parser.add_argument("--sequence-length", type=int, default=512)
    arguments = parser.parse_args()
    settings = get_settings()
    source = resolve_source(arguments.model, settings)
    store = ArtifactStore(settings.artifacts)
    text = evaluation_text(arguments.text or "auto", settings.cache)
    calibration = calibration_text(None, settings.cache)
    table = Table(*COLUMNS, title=f"{source.name} on {text.name}, calibrated on {calibration.name}")
    for method, bits, engine, act_order in RUNS:
        chosen = groupwise_settings(
            GroupQuantization(method=method, bits=bits, group_size=arguments.group_size),
            engine=engine,
            desc_act=act_order,
            samples=arguments.samples,
            sequence_length=arguments.sequence_length,
        )
        job_id = groupwise_job(source.name, source, chosen, calibration).job_id
        with WorkerProgress(Verbosity.NORMAL) as progress:
            try:
                make_groupwise_artifact(
                    source.name, source, chosen, calibration, store,
                    text=text, cache=settings.cache, on_event=progress.show,
                )  # fmt: skip
                folder = store.folder(job_id)
            except CheckFailed:
                folder = store.root / ".rejected" / job_id
        manifest = ArtifactManifest.model_validate_json((folder / MANIFEST_NAME).read_text("utf-8"))
        table.add_row(*_row(manifest, f"{method} {engine}{' act-order' if act_order else ''}"))
    Console(width=160).print(table)


def _row(manifest: ArtifactManifest, method: str) -> list[str]:
    checks = manifest.validation
    parameters = manifest.job.parameters
    return [
        method,
        str(parameters["bits"]),
        str(parameters["group_size"]),
        f"{manifest.bits_per_weight:.3f}",
        f"{manifest.perplexity:.3f}" if manifest.perplexity else "not measured",
        f"{checks.get('ratio_to_source', float('nan')):.4f}",
        f"{checks.get('ratio_to_rounding', float('nan')):.4f}",
        f"{manifest.seconds:.0f}",
        f"{(manifest.peak_rss_bytes or 0) / 1e9:.2f}",
        manifest.status,
    ]


if __name__ == "__main__":
    main()
