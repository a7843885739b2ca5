"""What `quant-assets recommend --cpu` loses when a fifth of the grid has been measured.

Measures every cell of a grid (levels x KV types x batch sizes) on this machine with the project's own
campaign, and the quality of every variant. Then it pretends that only a fifth of the cells had been
measured, asks what the command asks, and compares the choice with the best of the whole grid:

- the fastest variant at each batch size;
- the fastest within a limit on quality loss, and within a limit on memory, at three levels each;
- the one of best quality that reaches a speed per sequence, at three levels;
- the fastest and the one of best quality within all three limits.

The fifth is the one that `cells_to_measure` designs, and many random ones. A choice loses the share
of speed, or the growth in perplexity, by which the best is better; a choice that misses the speed
asked for loses at least what it misses; no choice loses everything. The noise floor is what choices
from the whole grid lose when every cell is off by as much as cells differ that are measured twice.

Run it on an idle machine: cells measured while it was busy are measured once more, and stop the
benchmark if they are contended again. A second run with the same settings reuses what it finds.
"""

import argparse
import math
import random
import statistics
import sys
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Final, Literal, NamedTuple, cast, get_args

import numpy as np
from arguments import gguf_levels, positive, positive_list
from pydantic import BaseModel
from rich.console import Console
from rich.table import Table

from quant_assets.artifacts.store import ArtifactStore
from quant_assets.atomic_files import write_text_atomically
from quant_assets.bench.artifact_finder import artifact_finder
from quant_assets.bench.campaign import Campaign, ExtraMeasurements, measured_records
from quant_assets.bench.quality import QualityStore
from quant_assets.bench.record import BenchmarkRecord
from quant_assets.bench.results import ResultStore
from quant_assets.bench.settings import BenchSettings
from quant_assets.bench.variants import CacheType, Variant
from quant_assets.errors import QuantAssetsError
from quant_assets.host.conditions import cpu_name
from quant_assets.host.identity import host_id
from quant_assets.models.config import load_models
from quant_assets.quantize.conversion.float_source import float_source
from quant_assets.quantize.gguf.artifact import make_gguf_artifact
from quant_assets.settings import Settings, get_settings
from quant_assets.speed.host_cells import StepLengths
from quant_assets.speed.host_fit import HostPrediction, HostRun, cells_to_measure, predict_host
from quant_assets.speed.host_records import HostRecords, host_runs
from quant_assets.texts.evaluation import TextChoice, evaluation_text
from quant_assets.warehouse.host_recommendation import (
    HostCandidate,
    HostEvidence,
    HostQuestion,
    rank_for_host,
)

BASELINE: Final = "F16"
LEVELS: Final = (BASELINE, "Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "Q4_0")
KV_TYPES: Final[tuple[tuple[CacheType, CacheType], ...]] = (
    ("f16", "f16"), ("q8_0", "q8_0"), ("q4_0", "q4_0"), ("q8_0", "q4_0"),
)  # fmt: skip
BATCHES: Final = (1, 2, 4, 8)
SHARE: Final = 5
"""One cell in so many is measured."""
LIMITS: Final = (0.25, 0.5, 0.75)
"""Where a limit lies among the values of the variants: a quarter, half, three quarters meet it."""
TARGET: Final = 0.03
REMEASURED: Final = 4
"""One variant in so many is measured twice."""

CONSOLE = Console(highlight=False, width=140)

Kind = Literal[
    "fastest",
    "fastest within quality loss",
    "fastest within memory",
    "best quality at speed",
    "fastest within all three",
    "best quality within all three",
]


class Asked(NamedTuple):
    """A question, and of which kind it is."""

    kind: Kind
    question: HostQuestion


class Loss(NamedTuple):
    """What one answer loses; `answered` is false where nothing seemed to qualify."""

    kind: Kind
    loss: float
    answered: bool


class Summary(BaseModel):
    """Losses of the answers to questions of one kind: shares, 0.03 is 3 %."""

    kind: str
    answers: int
    median: float
    mean: float
    p90: float
    largest: float
    unanswered: int


class Errors(BaseModel):
    """Predictions of the cells that were not measured: |predicted / measured - 1| and intervals."""

    median: float
    p90: float
    coverage: float
    width: float


class Source(BaseModel):
    """Answers from one way to choose the measured cells."""

    name: str
    repetitions: int
    measured_cells: int
    errors: Errors | None
    losses: list[Summary]


class RegretReport(BaseModel):
    """All figures of a run. `noise` is the standard deviation of a cell's log speed."""

    processor: str | None
    threads: int
    model: str
    cells: int
    settings: BenchSettings
    seconds: float
    noise: float
    contended_cells: int
    target: float
    sources: list[Source]
    records: list[BenchmarkRecord]


class Grid(NamedTuple):
    """The measured grid: by batch size, the candidates and the run of each."""

    candidates: dict[int, list[HostCandidate]]
    runs: list[HostRun]

    @property
    def speeds(self) -> dict[tuple[object, ...], float]:
        """The measured tokens/s of every cell by its key."""
        return {run.cell.key: run.tokens_per_s for run in self.runs}


def variants_of(levels: Sequence[str]) -> dict[str, Variant]:
    """All levels with all KV types, by name."""
    return {
        name: Variant(name=name, format="gguf", level=level, cache_type_k=k, cache_type_v=v)
        for level in levels
        for k, v in KV_TYPES
        for name in [f"{level.lower()}-k_{k}-v_{v}"]
    }


def questions(
    candidates: Sequence[HostCandidate], speeds: Mapping[tuple[object, ...], float]
) -> list[Asked]:
    """The questions at one batch size; every one has an answer in the whole grid."""
    batch = candidates[0].cell.batch
    model = candidates[0].cell.model
    per_sequence = [speeds[candidate.cell.key] / batch for candidate in candidates]
    losses = [item.quality.certain for item in candidates if item.quality is not None]
    losses_at, memory_at, speed_at = (
        [float(value) for value in np.quantile(values, levels)]
        for values, levels in (
            (losses, LIMITS),
            ([item.memory_gb for item in candidates], LIMITS),
            (per_sequence, [1 - level for level in LIMITS]),
        )
    )
    plain = HostQuestion(model=model, batch=batch, limit=1)
    asked = [Asked("fastest", plain)]
    for loss, memory, speed in zip(losses_at, memory_at, speed_at, strict=True):
        limits: dict[Kind, dict[str, object]] = {
            "fastest within quality loss": {"max_quality_loss": max(loss, 0.0)},
            "fastest within memory": {"max_memory_gb": memory},
            "best quality at speed": {"min_tokens_per_s": speed, "objective": "quality"},
        }
        every = {name: value for limit in limits.values() for name, value in limit.items()}
        limits["fastest within all three"] = {**every, "objective": "speed"}
        limits["best quality within all three"] = every
        asked += [Asked(kind, plain.model_copy(update=limit)) for kind, limit in limits.items()]
    return [item for item in asked if _truly_suitable(item.question, candidates, speeds)]


def _truly_suitable(
    question: HostQuestion,
    candidates: Sequence[HostCandidate],
    speeds: Mapping[tuple[object, ...], float],
) -> list[HostCandidate]:
    """The candidates that qualify by their measured speed, best first."""
    known = [
        HostPrediction(speed, speed, speed, "measured", 1)
        for speed in (speeds[candidate.cell.key] for candidate in candidates)
    ]
    by_name = {candidate.variant.name: candidate for candidate in candidates}
    every = question.model_copy(update={"limit": len(candidates)})
    return [by_name[option.variant] for option in rank_for_host(every, candidates, known)[0]]


def loss_of(
    asked: Asked,
    candidates: Sequence[HostCandidate],
    speeds: Mapping[tuple[object, ...], float],
    predictions: Sequence[HostPrediction],
) -> Loss:
    """What the answer from `predictions` loses against the best by the measured speeds."""
    question = asked.question
    options, _ = rank_for_host(question, candidates, predictions)
    if not options:
        return Loss(asked.kind, 1.0, answered=False)
    best = _truly_suitable(question, candidates, speeds)[0]
    chosen = next(item for item in candidates if item.variant.name == options[0].variant)
    speed = speeds[chosen.cell.key]
    if question.objective == "speed":
        lost = 1 - speed / speeds[best.cell.key]
    else:
        lost = (1 + _known(chosen)) / (1 + _known(best)) - 1
    missed = 0.0
    if question.min_tokens_per_s is not None:
        missed = 1 - speed / chosen.cell.batch / question.min_tokens_per_s
    return Loss(asked.kind, max(lost, missed, 0.0), answered=True)


def _known(candidate: HostCandidate) -> float:
    return math.inf if candidate.quality is None else candidate.quality.loss


def evaluate(
    name: str, grid: Grid, choices: Iterable[Sequence[HostRun]], *, errors: bool = True
) -> Source:
    """The losses of answers from each choice of runs, over all questions."""
    speeds = grid.speeds
    asked = {batch: questions(items, speeds) for batch, items in grid.candidates.items()}
    cells = [item.cell for items in grid.candidates.values() for item in items]
    losses: list[Loss] = []
    predicted: list[tuple[HostPrediction, float]] = []
    repetitions = measured = 0
    for runs in choices:
        repetitions += 1
        measured = len(runs)
        by_key = dict(zip((cell.key for cell in cells), predict_host(runs, cells), strict=True))
        for batch, items in grid.candidates.items():
            answers = [by_key[item.cell.key] for item in items]
            losses += [loss_of(question, items, speeds, answers) for question in asked[batch]]
        predicted += [
            (by_key[cell.key], speeds[cell.key])
            for cell in cells
            if by_key[cell.key].basis == "estimated"
        ]
    kinds: list[str | None] = [None, *get_args(Kind)]
    return Source(
        name=name,
        repetitions=repetitions,
        measured_cells=measured,
        errors=_errors(predicted) if errors and predicted else None,
        losses=[_summary(kind, losses) for kind in kinds],
    )


def _errors(predicted: Sequence[tuple[HostPrediction, float]]) -> Errors:
    off = [abs(prediction.tokens_per_s / speed - 1) for prediction, speed in predicted]
    return Errors(
        median=statistics.median(off),
        p90=float(np.quantile(off, 0.9)),
        coverage=statistics.mean(item.low <= speed <= item.high for item, speed in predicted),
        width=statistics.mean(item.high / item.low for item, _ in predicted),
    )


def _summary(kind: str | None, losses: Sequence[Loss]) -> Summary:
    of_kind = [item for item in losses if kind in (None, item.kind)]
    values = [item.loss for item in of_kind] or [math.nan]
    return Summary(
        kind=kind or "all questions",
        answers=len(of_kind),
        median=statistics.median(values),
        mean=statistics.fmean(values),
        p90=float(np.quantile(values, 0.9)),
        largest=max(values),
        unanswered=sum(not item.answered for item in of_kind),
    )


def compare(grid: Grid, differences: Sequence[float], repetitions: int, seed: int) -> list[Source]:
    """The design, random fifths, and the noise floor; `differences` are log speeds of two turns."""
    count = max(1, round(len(grid.runs) / SHARE))
    generator = random.Random(seed)
    design = [
        grid.runs[place] for place in cells_to_measure([run.cell for run in grid.runs], count)
    ]
    fifths = (generator.sample(grid.runs, count) for _ in range(repetitions))
    # Two turns differ by the noise of both.
    noise = [difference / math.sqrt(2) for difference in differences]
    noisy = (
        [
            HostRun(
                run.cell,
                run.tokens_per_s * math.exp(generator.choice(noise) * generator.choice((-1, 1))),
            )
            for run in grid.runs
        ]
        for _ in range(repetitions if noise else 0)
    )
    return [
        evaluate("a fifth by design", grid, [design]),
        evaluate("random fifths", grid, fifths),
        evaluate("whole grid, measured again", grid, noisy, errors=False),
    ]


class Bench:
    """The grid's measurement on this machine."""

    def __init__(self, arguments: argparse.Namespace, project: Settings) -> None:
        self._arguments = arguments
        self._project = project
        self._store = ArtifactStore(project.artifacts)
        self._model = load_models(project.models_yaml)[0]
        self._variants = variants_of(arguments.levels)
        self._results = ResultStore(arguments.output / "records")
        self._again = ResultStore(arguments.output / "records_again")
        self.settings = BenchSettings(
            batch_sizes=arguments.batch_sizes,
            warmups=1,
            runs=arguments.runs,
            prompt_tokens=arguments.prompt_tokens,
            generated_tokens=arguments.generated_tokens,
            device="cpu",
        )

    @property
    def model(self) -> str:
        """The name of the measured model."""
        return self._model.name

    def make_artifacts(self) -> None:
        """Make the artifacts that the store lacks."""
        source = float_source(self._model.source, self._model.name, self._project)
        for level in dict.fromkeys((BASELINE, *self._arguments.levels)):
            CONSOLE.print(f"artifact {level}")
            make_gguf_artifact(self._model.name, source, level, self._store)

    def measure(self) -> list[BenchmarkRecord]:
        """The newest record of every cell, with quality; exits if cells are contended twice."""
        # Chosen once: without a network, every attempt to fetch WikiText-2 takes seconds.
        text = evaluation_text(self._arguments.text, self._project.cache).name
        extras = ExtraMeasurements(cast(TextChoice, text), self._arguments.windows)
        records = self._run(self._variants, self._results, extras)
        busy = {record.variant for record in records if record.contended is not False}
        if busy and not self._arguments.allow_contended:
            CONSOLE.print(f"{len(busy)} variants again: the machine was busy")
            again = {name: variant for name, variant in self._variants.items() if name in busy}
            self._run(again, self._results, extras, restart=True)
            records = self._known(self._campaign(self._variants, self._results))
            busy = {record.variant for record in records if record.contended is not False}
            if busy:
                sys.exit(
                    f"The machine was busy while {len(busy)} variants were measured. Stop other "
                    "programs and run this again, or give --allow-contended for a rehearsal."
                )
        return records

    def measure_again(self) -> list[BenchmarkRecord]:
        """A second record of every cell of some variants, from all levels and KV types in turn."""
        names = list(self._variants)
        step = len(KV_TYPES) + 1
        chosen = [names[place * step % len(names)] for place in range(len(names) // REMEASURED)]
        variants = {name: self._variants[name] for name in names if name in chosen}
        return self._run(variants, self._again, ExtraMeasurements())

    def grid(self, records: Sequence[BenchmarkRecord]) -> Grid:
        """The candidates and runs of the records, as the command would have them."""
        evidence = HostEvidence(
            self._variants,
            self._store,
            self._results,
            QualityStore(self._results.folder, self._project.cache),
        )
        candidates = {
            batch: evidence.candidates(
                self.model,
                StepLengths(batch, self.settings.prompt_tokens, self.settings.generated_tokens),
            )[0]
            for batch in self.settings.batch_sizes
        }
        host = HostRecords(
            cpu_name() or "", self.settings.effective_threads, list(records), Counter()
        )
        return Grid(candidates, host_runs(host, self._variants, evidence.open_artifact))

    def _campaign(self, variants: Mapping[str, Variant], results: ResultStore) -> Campaign:
        find = artifact_finder(self._store, self.model)
        baseline = find(Variant(name="baseline", format="gguf", level=BASELINE))
        return Campaign(self.model, variants, self.settings, results, find, baseline)

    def _run(
        self,
        variants: Mapping[str, Variant],
        results: ResultStore,
        extras: ExtraMeasurements,
        *,
        restart: bool = False,
    ) -> list[BenchmarkRecord]:
        campaign = self._campaign(variants, results)
        known = self._known(campaign)
        if not restart and len(known) == len(variants) * len(self.settings.batch_sizes):
            CONSOLE.print(f"{len(known)} cells are reused from {results.folder}")
            return known
        return measured_records(campaign.run(extras, self._project, restart=restart))

    def _known(self, campaign: Campaign) -> list[BenchmarkRecord]:
        """The newest record of each cell that this machine measured with these settings."""
        settings, machine = self.settings, host_id()
        wanted = (
            settings.prompt_tokens, settings.generated_tokens, settings.warmups, settings.runs,
            settings.effective_threads, machine,
        )  # fmt: skip
        return [
            record
            for record in campaign.latest_records()
            for run in [record.metadata]
            if wanted
            == (
                run.prompt_tokens, run.generated_tokens, run.warmups, run.runs, run.threads,
                run.host_id,
            )
        ]  # fmt: skip


def log_differences(
    records: Sequence[BenchmarkRecord], again: Sequence[BenchmarkRecord]
) -> list[float]:
    """The differences of log decoding speeds of the cells that both have."""
    first = {(record.variant, record.batch_size): record.decode_tokens_per_s for record in records}
    found = []
    for record in again:
        earlier = first.get((record.variant, record.batch_size))
        if earlier and record.decode_tokens_per_s:
            found.append(math.log(record.decode_tokens_per_s / earlier))
    return found


def print_tables(report: RegretReport) -> None:
    """Print losses by question, and the errors of the predictions."""
    table = Table(
        title=f"Loss against the best of {report.cells} cells: {report.model} on {report.processor}, "
        f"{report.threads} threads",
        caption=f"noise of a cell {report.noise:.1%}; target: median <= {report.target:.0%}",
    )
    for column in ("measured cells", "question"):
        table.add_column(column)
    for column in ("answers", "median", "mean", "90th percentile", "largest", "unanswered"):
        table.add_column(column, justify="right")
    for source in report.sources:
        for place, item in enumerate(source.losses):
            table.add_row(
                f"{source.name} ({source.measured_cells})" if place == 0 else "",
                item.kind,
                f"{item.answers:,}",
                *(f"{value:.2%}" for value in (item.median, item.mean, item.p90, item.largest)),
                str(item.unanswered),
                end_section=place == len(source.losses) - 1,
            )
    CONSOLE.print(table)
    for source in report.sources:
        if source.errors is not None:
            errors = source.errors
            CONSOLE.print(
                f"{source.name}: unmeasured cells off by {errors.median:.1%} (median), "
                f"{errors.p90:.1%} (90th percentile); {errors.coverage:.0%} inside the 90% interval, "
                f"whose high end is {errors.width:.2f} times its low end"
            )


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The arguments, checked."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--levels", type=gguf_levels, default=LEVELS)
    parser.add_argument("--batch-sizes", type=positive_list, default=BATCHES)
    parser.add_argument("--runs", type=positive, default=3, help="measured runs per cell")
    parser.add_argument("--prompt-tokens", type=positive, default=48)
    parser.add_argument("--generated-tokens", type=positive, default=16)
    parser.add_argument(
        "--windows", type=positive, default=3, help="windows of 512 tokens to score"
    )
    parser.add_argument(
        "--text", choices=("auto", "wikitext-2", "python-reference"), default="auto"
    )
    parser.add_argument("--repetitions", type=positive, default=100, help="random fifths")
    parser.add_argument("--seed", type=positive, default=1)
    parser.add_argument("--output", type=Path, default=get_settings().home / "regret")
    parser.add_argument(
        "--allow-contended", action="store_true", help="keep cells measured on a busy machine"
    )
    return parser.parse_args(arguments)


def main() -> None:
    """Measure the grid, ask, print and write the losses; exit 1 when the design misses the target."""
    arguments = parse_arguments()
    started = time.monotonic()
    bench = Bench(arguments, get_settings())
    try:
        bench.make_artifacts()
        records = bench.measure()
        differences = log_differences(records, bench.measure_again())
    except QuantAssetsError as error:
        sys.exit(str(error))
    grid = bench.grid(records)
    sources = compare(grid, differences, arguments.repetitions, arguments.seed)
    report = RegretReport(
        processor=cpu_name(),
        threads=bench.settings.effective_threads,
        model=bench.model,
        cells=len(grid.runs),
        settings=bench.settings,
        seconds=time.monotonic() - started,
        noise=float(np.sqrt(np.mean(np.square(differences)) / 2)),
        contended_cells=sum(record.contended is not False for record in records),
        target=TARGET,
        sources=sources,
        records=list(records),
    )
    write_text_atomically(arguments.output / "regret.json", report.model_dump_json(indent=2))
    print_tables(report)
    CONSOLE.print(
        f"{report.seconds / 60:.1f} minutes; written to {arguments.output / 'regret.json'}"
    )
    sys.exit(0 if sources[0].losses[0].median <= TARGET else 1)


if __name__ == "__main__":
    main()
