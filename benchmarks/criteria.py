"""The specification's six success criteria, measured: what was asked, what was measured, and how.

Prints a table and writes it as JSON and Markdown after each criterion, so that an interrupted run
loses none. All six take about half an hour on two cores; `--only SC-002` measures one. Exits with 1
when a criterion could not be measured; a criterion that is not met is a result like any other.
"""

import argparse
import datetime
import os
import platform
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

import psutil
from arguments import existing_file, model_file_or_folder, positive, positive_number
from criterion import (
    DEMANDS,
    Criterion,
    CriterionId,
    as_markdown,
    as_table,
    details_table,
)
from failures import measure as measure_failures
from file_sizes import measure_file_sizes
from first_file import measure_first_file
from gguf_one_pass import SHAPES
from operations import OPERATIONS
from operations import measure as measure_operations
from perplexity_increase import measure_perplexity_increase
from pydantic import BaseModel, ConfigDict
from real_models import packaged_models
from rich.console import Console
from seven_b import MEMORY_LIMIT_BYTES, measure_seven_b

from quant_assets.artifacts.job import library_versions
from quant_assets.atomic_files import write_text_atomically
from quant_assets.errors import QuantAssetsError, explained
from quant_assets.host.conditions import cpu_name
from quant_assets.redaction import redact
from quant_assets.settings import PROJECT_ROOT, get_settings
from quant_assets.texts.evaluation import evaluation_text

CONSOLE = Console(highlight=False, width=160)
MESSAGES = Console(highlight=False, width=160, stderr=True)


class CriteriaReport(BaseModel):
    """The criteria of one run and the machine that measured them; memory is in GB (10^9 bytes)."""

    model_config = ConfigDict(frozen=True)

    measured_at: datetime.datetime
    system: str
    processor: str | None
    cores: int | None
    memory_gb: float
    load_average_1m: float | None
    library_versions: dict[str, str]
    criteria: list[Criterion]


def this_machine() -> CriteriaReport:
    """A report without criteria."""
    return CriteriaReport(
        measured_at=datetime.datetime.now(datetime.UTC),
        system=f"{platform.platform()}, Python {platform.python_version()}",
        processor=cpu_name(),
        cores=os.cpu_count(),
        memory_gb=psutil.virtual_memory().total / 1e9,
        load_average_1m=os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        library_versions=library_versions("gguf"),
        criteria=[],
    )


def _measure_seven_b(options: argparse.Namespace, folder: Path) -> Criterion:
    return measure_seven_b(
        folder,
        shape=options.shape,
        threads=options.threads,
        limit_bytes=int(options.memory_gb * 1e9),
    )


def _measure_perplexity_increase(options: argparse.Namespace, folder: Path) -> Criterion:
    settings = get_settings()
    return measure_perplexity_increase(
        folder,
        _models(options),
        evaluation_text(options.text or "auto", settings.cache),
        windows=options.windows,
        threads=options.threads,
        settings=settings,
    )


def _measure_first_file(options: argparse.Namespace, folder: Path) -> Criterion:
    return measure_first_file(folder, repository=PROJECT_ROOT, empty_caches=options.empty_caches)


def _measure_file_sizes(options: argparse.Namespace, folder: Path) -> Criterion:
    return measure_file_sizes(
        folder,
        _models(options),
        shape=options.shape,
        threads=options.threads,
        settings=get_settings(),
    )


def _measure_operations(options: argparse.Namespace, folder: Path) -> Criterion:
    return measure_operations(folder, count=options.operations, console=MESSAGES)


def _measure_failures(options: argparse.Namespace, folder: Path) -> Criterion:
    return measure_failures(folder, count=options.failures, console=MESSAGES)


MEASURES: Final[dict[CriterionId, Callable[[argparse.Namespace, Path], Criterion]]] = {
    "SC-001": _measure_seven_b,
    "SC-002": _measure_perplexity_increase,
    "SC-003": _measure_operations,
    "SC-004": _measure_first_file,
    "SC-005": _measure_file_sizes,
    "SC-006": _measure_failures,
}
"""Each criterion, measured in an empty folder."""


def _models(options: argparse.Namespace) -> list[str]:
    return list(dict.fromkeys([*packaged_models(), *options.model]))


def measured(criterion: CriterionId, options: argparse.Namespace) -> Criterion:
    """The criterion, measured in a temporary folder; `not measured` after an error."""
    try:
        with tempfile.TemporaryDirectory(dir=options.folder) as folder:
            return MEASURES[criterion](options, Path(folder))
    except (QuantAssetsError, OSError, RuntimeError) as raised:
        error = explained(raised)
        why = f"{error.what} {error.why} {error.next_step}" if error else str(raised)
        return Criterion(
            id=criterion,
            demand=DEMANDS[criterion],
            measured=f"not measured: {redact(why)}",
            how="",
            met=None,
        )


def write_report(report: CriteriaReport, folder: Path) -> Path:
    """Write the report as JSON and Markdown, named by its time; return the Markdown file."""
    stem = f"criteria-{report.measured_at:%Y%m%d-%H%M%S}"
    write_text_atomically(folder / f"{stem}.json", report.model_dump_json(indent=2) + "\n")
    heading = (
        f"Success criteria, {report.measured_at:%Y-%m-%d %H:%M} UTC on {report.processor}, "
        f"{report.cores} cores, {report.memory_gb:.0f} GB"
    )
    page = folder / f"{stem}.md"
    write_text_atomically(page, as_markdown(report.criteria, heading))
    return page


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The arguments, checked; exits with status 2 for those that cannot be measured."""
    settings = get_settings()
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--only", action="append", choices=list(MEASURES), default=[],
        help="a criterion to measure instead of all; repeat for more",
    )  # fmt: skip
    parser.add_argument(
        "--model", action="append", type=model_file_or_folder, default=[], metavar="FOLDER_OR_GGUF",
        help="SC-002, SC-005: a model beside those of installed packages; repeat for more",
    )  # fmt: skip
    parser.add_argument(
        "--windows", type=positive, default=30, help="SC-002: windows of 512 tokens to score"
    )
    parser.add_argument(
        "--text", type=existing_file,
        help="SC-002: another text; WikiText-2 where it can be fetched, or Python's reference",
    )  # fmt: skip
    parser.add_argument(
        "--operations", type=positive, default=OPERATIONS, help="SC-003: operations to run"
    )
    parser.add_argument(
        "--failures", type=positive, help="SC-006: failures to provoke; all by default"
    )
    parser.add_argument(
        "--shape", choices=list(SHAPES), default="llama-7b",
        help="SC-001, SC-005: a smaller model than 7B, to try the measurement itself",
    )  # fmt: skip
    parser.add_argument(
        "--memory-gb", type=positive_number, default=MEMORY_LIMIT_BYTES / 1e9,
        help="SC-001: the memory limit in GB (10^9 bytes)",
    )  # fmt: skip
    parser.add_argument("--threads", type=positive, default=os.cpu_count() or 1)
    parser.add_argument(
        "--empty-caches", action="store_true",
        help="SC-004: download and compile everything, as on a new machine; needs the network",
    )  # fmt: skip
    parser.add_argument(
        "--folder", type=Path, default=settings.cache / "bench-criteria",
        help="where temporary files go; SC-001 needs 18 GB there",
    )  # fmt: skip
    parser.add_argument(
        "--output", type=Path, default=settings.home / "reports", help="folder of the report"
    )
    parsed = parser.parse_args(arguments)
    parsed.only = [each for each in MEASURES if each in (parsed.only or MEASURES)]
    return parsed


def main() -> None:
    """Measure, print and write after each criterion; exit 1 when one could not be measured."""
    options = parse_arguments()
    options.folder.mkdir(parents=True, exist_ok=True)
    report = this_machine()
    for criterion in options.only:
        MESSAGES.print(f"{criterion}: {DEMANDS[criterion]}", style="dim")
        result = measured(criterion, options)
        report = report.model_copy(update={"criteria": [*report.criteria, result]})
        if result.details:
            CONSOLE.print(details_table(result))
        page = write_report(report, options.output)
    CONSOLE.print(as_table(report.criteria))
    MESSAGES.print(f"written: {page} and .json", style="dim")
    sys.exit(1 if any(criterion.met is None for criterion in report.criteria) else 0)


if __name__ == "__main__":
    main()
