"""`quant-assets bench`: run the matrix, show its plan, check thresholds, compare records."""

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from quant_assets.artifacts.store import ArtifactStore
from quant_assets.bench.artifact_finder import FindArtifact, artifact_finder
from quant_assets.bench.cell import MeasuredCell, run_cell
from quant_assets.bench.compare import compare as compare_sides
from quant_assets.bench.compare import open_side
from quant_assets.bench.endpoint import Endpoint
from quant_assets.bench.endpoint_cell import run_endpoint_cell
from quant_assets.bench.matrix import (
    CellOutcome,
    PlannedCell,
    plan_matrix,
    run_matrix,
)
from quant_assets.bench.obedience.measurement import (
    MAX_TOKENS,
    ObedienceResult,
    check_answers,
    measure_obedience,
)
from quant_assets.bench.obedience.prompts import load_prompts
from quant_assets.bench.quality import QualityResult, QualityStore, measure_quality
from quant_assets.bench.record import BenchmarkRecord
from quant_assets.bench.results import ResultStore
from quant_assets.bench.settings import BenchSettings, resolve_settings, resolve_variant_names
from quant_assets.bench.statistics import Ratio
from quant_assets.bench.subject import Subject
from quant_assets.bench.thresholds import check_records, load_thresholds
from quant_assets.bench.variants import BASELINE_VARIANT, Variant, load_settings, load_variants
from quant_assets.cli.output import output_console, print_line
from quant_assets.cli.worker_progress import Verbosity, WorkerProgress
from quant_assets.errors import InputError
from quant_assets.host.devices import Device
from quant_assets.models.config import load_models
from quant_assets.processes.protocol import ProgressEvent
from quant_assets.processes.session import WorkerSession
from quant_assets.settings import get_settings
from quant_assets.texts.evaluation import TextChoice, evaluation_text

bench = typer.Typer(help="Benchmark the variants of a model.", invoke_without_command=True)


@bench.callback()
def run(
    context: typer.Context,
    model: Annotated[
        str | None, typer.Option(help="Name in models.yaml; the first by default.")
    ] = None,
    variant: Annotated[
        list[str] | None, typer.Option(help="Variant to run; repeat for more. Else VARIANTS.")
    ] = None,
    batch_size: Annotated[
        list[int] | None, typer.Option(help="Batch size; repeat for more. Else BATCH_SIZES.")
    ] = None,
    warmups: Annotated[int | None, typer.Option(help="Warm-up runs. Else WARMUPS.")] = None,
    runs: Annotated[int | None, typer.Option(help="Measured runs. Else RUNS.")] = None,
    prompt_tokens: Annotated[int | None, typer.Option(help="Prompt length.")] = None,
    generated_tokens: Annotated[int | None, typer.Option(help="Generated length.")] = None,
    threads: Annotated[
        int | None, typer.Option(help="Threads; at most the physical cores.")
    ] = None,
    device: Annotated[Device | None, typer.Option(help="Where models run.")] = None,
    obedience: Annotated[
        bool, typer.Option("--obedience", help="Also measure the obedience pass rate.")
    ] = False,
    quality: Annotated[
        bool, typer.Option("--quality", help="Also measure perplexity and KL divergence.")
    ] = False,
    text: Annotated[TextChoice, typer.Option(help="Text of the perplexity.")] = "auto",
    windows: Annotated[int, typer.Option(help="Windows of 512 tokens to score.", min=1)] = 30,
    endpoint: Annotated[
        str | None, typer.Option(help="Benchmark the server at this URL instead.")
    ] = None,
    endpoint_model: Annotated[
        str | None, typer.Option(help="Model of the endpoint; its first by default.")
    ] = None,
    results_dir: Annotated[Path | None, typer.Option(help="Folder of the records.")] = None,
    thresholds: Annotated[Path | None, typer.Option(help="Thresholds file for --check.")] = None,
    check: Annotated[
        bool,
        typer.Option(
            "--check",
            help="Fail when a record breaches a threshold; with --dry-run, check the records "
            "that are there.",
        ),
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the matrix with a time estimate.")
    ] = False,
    restart: Annotated[
        bool, typer.Option("--restart", help="Do not go on with an interrupted matrix.")
    ] = False,
    verbosity: Annotated[
        Verbosity, typer.Option(help="What is shown on standard error.")
    ] = Verbosity.NORMAL,
) -> None:
    """Run variants x batch sizes, one worker process a cell, and append a record for each.

    Exit codes: 0 done; 2 wrong usage; 3 bad input; 5 a worker died; 7 a threshold is breached.
    """
    if context.invoked_subcommand is not None:
        return
    settings = get_settings()
    results = ResultStore(results_dir or settings.results)
    bench_settings = resolve_settings(
        load_settings(settings.variants_yaml),
        {
            "batch_sizes": batch_size or None,
            "warmups": warmups,
            "runs": runs,
            "prompt_tokens": prompt_tokens,
            "generated_tokens": generated_tokens,
            "threads": threads,
            "device": device,
        },
    )
    limits = load_thresholds(thresholds or settings.data / "bench_thresholds.yaml")
    with WorkerProgress(verbosity) as progress:
        if endpoint is not None:
            records = _run_endpoint(
                Endpoint(endpoint, endpoint_model), bench_settings, results, progress, obedience
            )
            _print_records(records)
        else:
            known = load_variants(settings.variants_yaml)
            chosen = {name: known[name] for name in resolve_variant_names(list(known), variant)}
            model_name = _model_name(model)
            find = artifact_finder(ArtifactStore(settings.artifacts), model_name)
            plan = plan_matrix(chosen, bench_settings, find, results, model_name)
            if dry_run:
                _print_plan(plan)
                records = [
                    found[-1]
                    for cell in plan
                    if (
                        found := results.find(
                            variant=cell.variant, batch_size=cell.batch_size, model=model_name
                        )
                    )
                ]
            else:
                assess = _Assessor(
                    known, find, results, progress,
                    text=text if quality else None, windows=windows, obedience=obedience,
                )  # fmt: skip
                outcomes = list(
                    run_matrix(
                        plan, chosen, bench_settings, find, results, model_name, assess.run_cell,
                        restart=restart,
                    )
                )  # fmt: skip
                _print_outcomes(outcomes)
                records = [item.record for item in outcomes if item.record is not None]
                failed = [item.error for item in outcomes if item.error is not None]
                if failed:
                    raise failed[0]
    if check:
        check_records(records, limits)


class _Assessor:
    """Runs cells, and measures quality and obedience once a variant where that was asked for."""

    def __init__(
        self,
        variants: dict[str, Variant],
        find: FindArtifact,
        results: ResultStore,
        progress: WorkerProgress,
        *,
        text: TextChoice | None,
        windows: int,
        obedience: bool,
    ) -> None:
        self._variants = variants
        self._find = find
        self._results = results
        self._progress = progress
        self._text = text
        self._windows = windows
        self._obedience = obedience

    def run_cell(self, subject: Subject, batch_size: int) -> MeasuredCell:
        """One cell with everything that belongs into its record."""
        cell = run_cell(subject, batch_size, session=WorkerSession(self._progress.show))
        record = cell.record.with_quality(self._quality_of(subject), self._obedience_of(subject))
        return MeasuredCell(record, cell.samples)

    def _quality_of(self, subject: Subject) -> QualityResult | None:
        baseline_variant = self._variants.get(BASELINE_VARIANT)
        baseline = self._find(baseline_variant) if baseline_variant else None
        if self._text is None or baseline is None:
            return None
        cache = get_settings().cache
        return measure_quality(
            subject,
            baseline,
            evaluation_text(self._text, cache),
            QualityStore(self._results.folder, cache),
            windows=self._windows,
            session=WorkerSession(self._progress.show),
        )

    def _obedience_of(self, subject: Subject) -> ObedienceResult | None:
        if not self._obedience:
            return None
        return measure_obedience(
            subject,
            load_prompts(get_settings().data / "obedience"),
            self._results.folder,
            session=WorkerSession(self._progress.show),
        )


def _model_name(name: str | None) -> str:
    names = [model.name for model in load_models(get_settings().models_yaml)]
    if name is not None and name not in names:
        raise InputError(
            f"There is no model {name!r}.",
            f"The model list has {', '.join(names)}.",
            "Choose one of these, or add the model to the list.",
        )
    return name or names[0]


def _run_endpoint(
    endpoint: Endpoint,
    bench_settings: BenchSettings,
    results: ResultStore,
    progress: WorkerProgress,
    obedience: bool,
) -> list[BenchmarkRecord]:
    obeyed = None
    if obedience:
        prompts = load_prompts(get_settings().data / "obedience")
        answers = [endpoint.chat(prompt.prompt, MAX_TOKENS) for prompt in prompts]
        obeyed = check_answers(
            prompts,
            answers,
            variant="endpoint",
            model=endpoint.model,
            artifact_id=endpoint.base_url,
        )
    records = []
    for size in bench_settings.batch_sizes:
        cell = run_endpoint_cell(
            endpoint,
            size,
            bench_settings,
            on_progress=lambda step, done, total: progress.show(
                ProgressEvent(step=step, done=done, total=total, unit="runs")
            ),
        )
        records.append(results.append(cell.record.with_quality(obedience=obeyed), cell.samples))
    return records


@bench.command()
def compare(
    a: Annotated[str, typer.Argument(help="Result file, results folder, or variant.")],
    b: Annotated[str, typer.Argument(help="What it is compared with.")],
    results_dir: Annotated[
        Path | None, typer.Option(help="Folder in which variants are looked up.")
    ] = None,
) -> None:
    """Ratios A / B of run times with 95% bootstrap intervals; below 1, A is faster."""
    results = ResultStore(results_dir or get_settings().results)
    table = _table("model", "A", "B", "batch", "run time", "first token", "a token", "note")
    for item in compare_sides(open_side(a, results), open_side(b, results)):
        table.add_row(
            item.model,
            item.variant_a,
            item.variant_b,
            str(item.batch_size),
            _ratio(item.run_time),
            _ratio(item.time_to_first_token),
            _ratio(item.token_time) if item.token_time else "",
            "contended" if item.contended else "",
        )
    _print(table)


def _ratio(ratio: Ratio) -> str:
    return f"{ratio.ratio:.3f} ({ratio.low:.3f} to {ratio.high:.3f})"


def _print_plan(plan: list[PlannedCell]) -> None:
    table = _table("variant", "batch", "estimate", "from", "artifact or reason to skip")
    for cell in plan:
        seconds = "" if cell.estimate_s is None else f"{cell.estimate_s:,.0f} s"
        table.add_row(
            cell.variant,
            str(cell.batch_size),
            seconds,
            cell.estimate_basis or "",
            cell.artifact_id or f"skipped: {cell.skipped}",
        )
    _print(table)
    total = sum(cell.estimate_s or 0 for cell in plan)
    print_line(f"{len(plan)} cells, about {total / 60:.0f} min in all")


def _print_outcomes(outcomes: list[CellOutcome]) -> None:
    _print_records([item.record for item in outcomes if item.record is not None])
    for item in outcomes:
        name = f"{item.cell.variant} batch {item.cell.batch_size}"
        if item.resumed:
            print_line(f"{name}: measured before the interruption")
        elif item.error is not None:
            print_line(f"{name}: failed: {item.error}")
        elif item.record is None:
            print_line(f"{name}: skipped: {item.cell.skipped}")


def _print_records(records: list[BenchmarkRecord]) -> None:
    table = _table(
        "variant", "batch", "p50 ms", "p95 ms", "first token ms", "prefill tok/s", "decode tok/s",
        "peak MB", "KV MB", "perplexity", "KL", "obedience", "note",
    )  # fmt: skip
    for record in records:
        notes = [
            note
            for note, applies in (
                ("contended", record.contended),
                ("few runs", record.p95_flagged),
            )
            if applies
        ]
        table.add_row(
            record.metadata.variant,
            str(record.metadata.batch_size),
            f"{record.p50_ms:,.1f}",
            f"{record.p95_ms:,.1f}",
            _number(record.ttft_p50_ms, ".1f"),
            _number(record.prefill_tokens_per_s, ".1f"),
            _number(record.decode_tokens_per_s, ".1f"),
            _number(record.peak_rss_bytes, ".0f", 1e6),
            _number(record.kv_cache_bytes, ".2f", 1e6),
            _number(record.perplexity, ".3f"),
            _number(record.kl_divergence, ".4f"),
            _number(record.obedience_pass_rate, ".0%"),
            ", ".join(notes),
        )
    _print(table)


def _number(value: float | None, form: str, divisor: float = 1.0) -> str:
    return "" if value is None else format(value / divisor, form)


def _table(*columns: str) -> Table:
    table = Table()
    for column in columns:
        table.add_column(column)
    return table


def _print(table: Table) -> None:
    output_console().print(table)
