"""Quality, time and memory of GPTQ and AWQ artifacts of one model, as a table.

`.venv/bin/python benchmarks/groupwise_quality.py MODEL [--text FILE ...] [--group-size 64]`.
Perplexity is measured on the first windows of each text; ratios are to the source and to plain
rounding at the same bits and group size. An artifact that exists in the store is reused, with the
time it took then.
"""

import argparse
from typing import NamedTuple

from arguments import existing_file, positive
from rich.console import Console
from rich.table import Table

from quant_assets.artifacts.store import ArtifactStore
from quant_assets.cli.verbosity import Verbosity
from quant_assets.cli.worker_progress import WorkerProgress
from quant_assets.formats.artifact_formats import GroupwiseFormat
from quant_assets.formats.group_quantization import group_quantization
from quant_assets.models.inspection import inspect_model
from quant_assets.models.source import resolve_source
from quant_assets.processes.session import WorkerSession
from quant_assets.quantize.groupwise.artifact import GroupwiseSpec, make_groupwise_artifact
from quant_assets.quantize.groupwise.gate import (
    GateCandidate,
    PerplexityGate,
    Rounding,
    quality_warning,
)
from quant_assets.quantize.groupwise.job import (
    Engine,
    GroupwiseSettings,
    check_shape,
    groupwise_settings,
)
from quant_assets.settings import get_settings
from quant_assets.texts.calibration import calibration_text
from quant_assets.texts.evaluation import evaluation_text


class Case(NamedTuple):
    """One artifact of the table."""

    method: GroupwiseFormat
    bits: int
    engine: Engine
    act_order: bool = False
    sym: bool = True

    @property
    def name(self) -> str:
        """The row's name, such as `awq (autoawq)`."""
        traits = [
            *([self.engine] if self.method == "awq" else []),
            *(["act-order"] if self.act_order else []),
            *(["zero point"] if self.method == "gptq" and not self.sym else []),
        ]
        return f"{self.method} ({', '.join(traits)})" if traits else self.method


CASES = (
    Case("gptq", 4, "gptqmodel"),
    Case("awq", 4, "autoawq"),
    Case("awq", 4, "gptqmodel"),
    Case("gptq", 4, "gptqmodel", act_order=True),
    Case("gptq", 4, "gptqmodel", sym=False),
    Case("gptq", 3, "gptqmodel"),
    Case("gptq", 8, "gptqmodel"),
    Case("gptq", 2, "gptqmodel", sym=False),
)
COLUMNS = (
    "method", "bits", "group", "bits per weight", "text", "perplexity", "to source",
    "to rounding", "quantize (s)", "peak (GB)", "gate",
)  # fmt: skip


def main() -> None:
    """Create every artifact, measure it on every text, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument(
        "--text",
        type=existing_file,
        action="append",
        help="an additional evaluation text; repeat for more",
    )
    parser.add_argument("--calibration", help="text file or hub:owner/name; WikiText-2 by default")
    parser.add_argument("--group-size", type=int, action="append", help="64 by default")
    parser.add_argument("--samples", type=positive, default=32)
    parser.add_argument("--sequence-length", type=positive, default=512)
    parser.add_argument("--windows", type=positive, default=8)
    parser.add_argument("--context", type=positive, default=512)
    parser.add_argument(
        "--case", type=int, action="append", choices=range(len(CASES)),
        help="a row's number; all by default",
    )  # fmt: skip
    arguments = parser.parse_args()
    settings = get_settings()
    source = resolve_source(arguments.model, settings)
    store = ArtifactStore(settings.artifacts)
    texts = [evaluation_text(text, settings.cache) for text in ("auto", *(arguments.text or []))]
    calibration = calibration_text(arguments.calibration, settings.cache)
    table = Table(
        *COLUMNS,
        title=f"{source.name}, calibrated on {arguments.samples} x {arguments.sequence_length} "
        f"tokens of {calibration.name}",
    )
    planned = [
        (case, _settings(case, group_size, arguments.samples, arguments.sequence_length))
        for group_size in arguments.group_size or [64]
        for case in (CASES[number] for number in arguments.case or range(len(CASES)))
    ]
    shape = inspect_model(source.path)
    for _, chosen in planned:
        check_shape(shape, chosen)
    for case, chosen in planned:
        group_size = chosen.group_size
        with WorkerProgress(Verbosity.NORMAL) as progress:
            manifest, folder, _ = make_groupwise_artifact(
                GroupwiseSpec(source.name, source, chosen, calibration), store,
                gate=None, session=WorkerSession(progress.show),
            )  # fmt: skip
            for text in texts:
                gate = PerplexityGate(
                    text, settings.cache, windows=arguments.windows, context=arguments.context
                )
                gated = gate.check(
                    GateCandidate(
                        folder, case.method,
                        Rounding(bits=case.bits, group_size=group_size, sym=chosen.sym),
                        source, manifest.n_parameters,
                    ),
                    session=WorkerSession(progress.show),
                )  # fmt: skip
                table.add_row(
                    case.name, str(case.bits), str(group_size),
                    f"{manifest.bits_per_weight:.3f}", text.name, f"{gated.perplexity:.3f}",
                    f"{gated.ratio_to_source:.4f}", f"{gated.ratio_to_rounding:.4f}",
                    f"{manifest.seconds:.0f}", f"{(manifest.peak_rss_bytes or 0) / 1e9:.2f}",
                    "rejected" if gated.rejection
                    else "doubtful" if quality_warning(gated.ratio_to_source) else "passed",
                )  # fmt: skip
        Console(width=150).print(table)


def _settings(case: Case, group_size: int, samples: int, sequence_length: int) -> GroupwiseSettings:
    return groupwise_settings(
        group_quantization(case.method, case.bits, group_size),
        engine=case.engine,
        desc_act=case.act_order,
        sym=None if case.sym else False,
        samples=samples,
        sequence_length=sequence_length,
    )


if __name__ == "__main__":
    main()
