"""`quant-assets bench`: run the matrix, show its plan, check thresholds, compare records."""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import BaseModel
from rich.table import Table

from quant_assets.bench.campaign import (
    ExtraMeasurements,
    measured_records,
    open_campaign,
)
from quant_assets.bench.compare import Comparison, open_side
from quant_assets.bench.compare import compare as compare_sides
from quant_assets.bench.endpoint import Endpoint
from quant_assets.bench.endpoint_benchmark import bench_endpoint
from quant_assets.bench.kv_cache import DEFAULT_KV_CACHE_WINDOWS, KvCacheResult
from quant_assets.bench.matrix import CellOutcome, PlannedCell
from quant_assets.bench.quality import DEFAULT_WINDOWS
from quant_assets.bench.record import BenchmarkRecord
from quant_assets.bench.results import ResultStore
from quant_assets.bench.settings import resolve_settings
from quant_assets.bench.statistics import Ratio
from quant_assets.bench.thresholds import check_records, load_thresholds
from quant_assets.bench.variants import load_settings
from quant_assets.cli.options import CommandOptions, takes_models
from quant_assets.cli.output import output_console, print_line
from quant_assets.cli.presentation import CommandLine, Reply
from quant_assets.cli.verbosity import Verbosity
from quant_assets.cli.worker_progress import WorkerProgress
from quant_assets.host.devices import Device
from quant_assets.processes.quantization_job import QuantizationJob
from quant_assets.processes.session import WorkerSession
from quant_assets.settings import get_settings
from quant_assets.speed.host_design import with_designed_cells
from quant_assets.texts.evaluation import TextChoice

bench = CommandLine(help="Benchmark the variants of a model.", invoke_without_command=True)


class MatrixOptions(CommandOptions):
    """Which cells are run, and how."""

    model: Annotated[
        str | None, typer.Option(help="Name in models.yaml; by default its first model.")
    ] = None
    variant: Annotated[
        list[str] | None,
        typer.Option(help="Variant to run; repeatable (default: $VARIANTS, else all)."),
    ] = None
    batch_size: Annotated[
        list[int] | None, typer.Option(help="Batch size; repeatable (default: $BATCH_SIZES).")
    ] = None
    warmups: Annotated[int | None, typer.Option(help="Warm-up runs (default: $WARMUPS).")] = None
    runs: Annotated[int | None, typer.Option(help="Measured runs (default: $RUNS).")] = None
    prompt_tokens: Annotated[int | None, typer.Option(help="Prompt length in tokens.")] = None
    generated_tokens: Annotated[int | None, typer.Option(help="Tokens generated per sequence.")] = (
        None
    )
    threads: Annotated[
        int | None, typer.Option(help="Threads; at most the number of physical cores.")
    ] = None
    device: Annotated[Device | None, typer.Option(help="Where models run.")] = None
    cells: Annotated[
        int | None,
        typer.Option(
            help="Run only so many cells: those from which `recommend --cpu` estimates the others "
            "best. A fifth of all is usually enough.",
            min=1,
        ),
    ] = None

    def overrides(self) -> dict[str, Any]:
        """The settings that the command line overrides; None for those it leaves alone."""
        fields = ("warmups", "runs", "prompt_tokens", "generated_tokens", "threads", "device")
        values = {name: getattr(self, name) for name in fields}
        return {"batch_sizes": self.batch_size or None, **values}


class MeasurementOptions(CommandOptions):
    """Measurements besides speed."""

    obedience: Annotated[
        bool, typer.Option("--obedience", help="Also measure the obedience pass rate.")
    ] = False
    quality: Annotated[
        bool, typer.Option("--quality", help="Also measure perplexity and KL divergence.")
    ] = False
    text: Annotated[TextChoice, typer.Option(help="Text to measure perplexity on.")] = "auto"
    windows: Annotated[int, typer.Option(help="Windows of 512 tokens to score.", min=1)] = (
        DEFAULT_WINDOWS
    )

    kv_context: Annotated[
        list[int] | None,
        typer.Option(
            help="With --quality: context in tokens at which quantized KV caches are compared with "
            "F16; repeatable (default: kv_cache_contexts of the model).",
            min=64,
        ),
    ] = None
    kv_windows: Annotated[
        int, typer.Option(help="Windows of the longest --kv-context to score; 0: none.", min=0)
    ] = DEFAULT_KV_CACHE_WINDOWS

    def extras(self) -> ExtraMeasurements:
        """The measurements that the campaign adds to speed."""
        text = self.text if self.quality else None
        contexts = tuple(self.kv_context) if self.kv_context else None
        return ExtraMeasurements(text, self.windows, self.obedience, contexts, self.kv_windows)


class EndpointOptions(CommandOptions):
    """A running server in place of artifacts."""

    endpoint: Annotated[
        str | None, typer.Option(help="Benchmark the server at this URL instead.")
    ] = None
    endpoint_model: Annotated[
        str | None, typer.Option(help="The endpoint's model; by default its first.")
    ] = None


class RecordOptions(CommandOptions):
    """Where records go, and what is done with them."""

    results_dir: Annotated[Path | None, typer.Option(help="Folder of the records.")] = None
    thresholds: Annotated[Path | None, typer.Option(help="Thresholds file for --check.")] = None
    check: Annotated[
        bool,
        typer.Option(
            "--check",
            help="Fail when a record breaches a threshold; with --dry-run, check existing records.",
        ),
    ] = False
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the matrix with a time estimate.")
    ] = False
    restart: Annotated[
        bool, typer.Option("--restart", help="Do not resume an interrupted matrix.")
    ] = False


class BenchDocument(BaseModel):
    """The cells of a matrix: planned (--dry-run), or with their records.

    `records` has the latest record of each cell and processor that has one, `failures` what went wrong by cell,
    as in "q4_K_M batch 2", `kv_cache_quality` what the types of quantized KV caches cost at several
    contexts. Cells of a server have no plan. `quantization_job` is the final state of the
    whole matrix; null for a plan.
    """

    cells: list[PlannedCell]
    records: list[BenchmarkRecord]
    resumed: list[str] = []
    failures: dict[str, str] = {}
    kv_cache_quality: list[KvCacheResult] = []
    quantization_job: QuantizationJob | None = None


class BenchCompareDocument(BaseModel):
    """Every cell that both sides have, with equal settings on equal processors."""

    comparisons: list[Comparison]


@bench.callback()
@takes_models
def run(
    context: typer.Context,
    *,
    matrix: MatrixOptions,
    measurements: MeasurementOptions,
    server: EndpointOptions,
    options: RecordOptions,
    verbosity: Verbosity,
) -> Reply[BenchDocument] | None:
    """Run variants x batch sizes, one worker process per cell, and append a record for each.

    Cells without an artifact are skipped. Cells that fail do not stop the others; the first failure
    gives the exit code.

    Exit codes: 0 done; 2 wrong usage; 3 bad input; 5 a worker died; 7 a threshold is breached.
    """
    if context.invoked_subcommand is not None:
        return None
    settings = get_settings()
    results = ResultStore(options.results_dir or settings.results)
    bench_settings = resolve_settings(load_settings(settings.variants_yaml), matrix.overrides())
    limits = load_thresholds(options.thresholds or settings.data / "bench_thresholds.yaml")
    outcomes: list[CellOutcome] = []
    if server.endpoint is not None:
        endpoint = Endpoint(server.endpoint, server.endpoint_model)
        prompts = settings.data / "obedience" if measurements.obedience else None
        with WorkerProgress(verbosity) as progress:
            records = bench_endpoint(
                endpoint,
                bench_settings,
                results,
                prompts_folder=prompts,
                session=WorkerSession(progress.show),
            )
        document = BenchDocument(cells=[], records=records, quantization_job=progress.job)
        show = _show_records
    else:
        campaign = open_campaign(
            settings,
            bench_settings,
            results,
            model_name=matrix.model,
            variant_names=matrix.variant,
        )
        if matrix.cells is not None:
            campaign = with_designed_cells(campaign, matrix.cells)
        if options.dry_run:
            document = BenchDocument(
                cells=campaign.plan(),
                records=campaign.latest_records(),
                kv_cache_quality=campaign.kv_cache_quality(),
            )
            show = _show_plan
        else:
            with WorkerProgress(verbosity) as progress:
                outcomes = campaign.run(
                    measurements.extras(),
                    settings,
                    restart=options.restart,
                    session=WorkerSession(progress.show),
                )
            document = _outcome_document(outcomes).model_copy(
                update={
                    "quantization_job": progress.job,
                    "kv_cache_quality": campaign.kv_cache_quality(),
                }
            )
            show = _show_outcomes

    def fail_or_check() -> None:
        measured_records(outcomes)
        if options.check:
            check_records(document.records, limits)

    return Reply(document, show, afterwards=fail_or_check)


@bench.command()
def compare(
    a: Annotated[str, typer.Argument(help="Result file, results folder, or variant.")],
    b: Annotated[str, typer.Argument(help="What to compare it with.")],
    results_dir: Annotated[
        Path | None, typer.Option(help="Folder of records to look variants up in.")
    ] = None,
) -> Reply[BenchCompareDocument]:
    """Show ratios A / B of run times and perplexities with 95% intervals; below 1, A is better."""
    results = ResultStore(results_dir or get_settings().results)
    found = compare_sides(open_side(a, results), open_side(b, results))
    return Reply(BenchCompareDocument(comparisons=found), _show_comparisons)


def _show_comparisons(document: BenchCompareDocument) -> None:
    table = _table(
        "model", "A", "B", "batch", "tokens", "on", "run time", "first token", "per token",
        "perplexity", "note",
    )  # fmt: skip
    for item in document.comparisons:
        table.add_row(
            item.model,
            item.variant_a,
            item.variant_b,
            str(item.batch_size),
            f"{item.prompt_tokens} + {item.generated_tokens}",
            f"{item.processor or 'unknown'}{f', {item.threads} threads' if item.threads else ''}",
            _ratio(item.run_time),
            _ratio(item.time_to_first_token),
            _ratio(item.token_time) if item.token_time else "",
            _ratio(item.perplexity) if item.perplexity else "",
            ", ".join(_notes(item)),
        )
    _print(table)


def _notes(item: Comparison) -> Iterator[str]:
    if item.contended:
        yield "contended"
    if item.same_host is False:
        yield "different hosts"


def _ratio(ratio: Ratio) -> str:
    return f"{ratio.ratio:.3f} ({ratio.low:.3f} to {ratio.high:.3f})"


def _outcome_document(outcomes: list[CellOutcome]) -> BenchDocument:
    return BenchDocument(
        cells=[item.cell for item in outcomes],
        records=[item.record for item in outcomes if item.record is not None],
        resumed=[_name(item.cell) for item in outcomes if item.resumed],
        failures={_name(item.cell): str(item.error) for item in outcomes if item.error is not None},
    )


def _name(cell: PlannedCell) -> str:
    return f"{cell.variant} batch {cell.batch_size}"


def _show_plan(document: BenchDocument) -> None:
    table = _table("variant", "batch", "estimate", "based on", "artifact, or why skipped")
    for cell in document.cells:
        seconds = "" if cell.estimate_s is None else f"{cell.estimate_s:,.0f} s"
        table.add_row(
            cell.variant,
            str(cell.batch_size),
            seconds,
            cell.estimate_basis or "",
            cell.artifact_id or f"skipped: {cell.skipped}",
        )
    _print(table)
    total = sum(cell.estimate_s or 0 for cell in document.cells)
    print_line(f"{len(document.cells)} cells, about {total / 60:.0f} min in total")


def _show_outcomes(document: BenchDocument) -> None:
    _show_records(document)
    _show_kv_caches(document.kv_cache_quality)
    for cell in document.cells:
        name = _name(cell)
        if name in document.resumed:
            print_line(f"{name}: already measured before the interruption")
        elif name in document.failures:
            print_line(f"{name}: failed: {document.failures[name]}")
        elif cell.skipped is not None:
            print_line(f"{name}: skipped: {cell.skipped}")


def _show_records(document: BenchDocument) -> None:
    table = _table(
        "variant", "batch", "p50 ms", "p95 ms", "first token ms", "prefill tok/s", "decode tok/s",
        "peak MB", "KV MB", "perplexity", "over F16", "KL", "obedience", "note",
    )  # fmt: skip
    for record in document.records:
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
            _number(record.perplexity, ".3f")
            + ("" if (error := record.perplexity_standard_error) is None else f" +/- {error:.3f}"),
            _with_interval(
                record.perplexity_ratio, record.perplexity_ratio_low, record.perplexity_ratio_high
            ),
            _with_interval(
                record.kl_divergence, record.kl_divergence_low, record.kl_divergence_high
            ),
            _obedience(record),
            ", ".join(notes),
        )
    _print(table)


def _obedience(record: BenchmarkRecord) -> str:
    """The pass rate with its interval, where the number of prompts is known."""
    rate = _number(record.obedience_pass_rate, ".0%")
    low, high = record.obedience_pass_rate_low, record.obedience_pass_rate_high
    return rate if low is None or high is None else f"{rate} ({low:.0%} to {high:.0%})"


def _show_kv_caches(results: list[KvCacheResult]) -> None:
    """What the types of KV caches cost by context; nothing where none was measured."""
    if not results:
        return
    table = _table("variant", "K", "V", "context", "windows", "perplexity", "over F16 cache", "KL")
    for result in results:
        for measured in result.contexts:
            ratio, divergence = measured.perplexity_ratio_interval, measured.kl_divergence_interval
            table.add_row(
                result.variant,
                result.cache_type_k,
                result.cache_type_v,
                str(measured.context),
                str(measured.windows),
                f"{measured.perplexity:.3f} +/- {measured.perplexity_standard_error:.3f}",
                _with_interval(measured.perplexity_ratio, *(ratio or (None, None))),
                _with_interval(measured.kl_divergence, *(divergence or (None, None))),
            )
    _print(table)


def _with_interval(value: float | None, low: float | None, high: float | None) -> str:
    if value is None:
        return ""
    return f"{value:.4f}" + ("" if low is None or high is None else f" ({low:.4f} to {high:.4f})")


def _number(value: float | None, form: str, divisor: float = 1.0) -> str:
    return "" if value is None else format(value / divisor, form)


def _table(*columns: str) -> Table:
    table = Table()
    for column in columns:
        table.add_column(column)
    return table


def _print(table: Table) -> None:
    output_console().print(table)
