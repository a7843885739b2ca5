"""`quant-assets demo`: run the whole graph once, for the configured models."""

import os
import warnings
from pathlib import Path
from typing import Annotated

import typer
from pydantic import BaseModel
from rich.table import Table

from quant_assets.cli.output import output_console, standard_output_hidden
from quant_assets.cli.presentation import Reply
from quant_assets.cli.verbosity import notify
from quant_assets.processes.quantization_job import QuantizationJob
from quant_assets.settings import get_settings
from quant_assets.warehouse.connection import Warehouse
from quant_assets.warehouse.queries import (
    DeploymentOption,
    cheapest_deployment_options,
    row_counts,
)

TOP_ROWS = 12


class DemoDocument(BaseModel):
    """The cheapest offers for every variant, and the rows of each table of the DuckDB file.

    `quantization_job` is the final state of the run: progress, times and memory.
    """

    best_offers: list[DeploymentOption]
    row_counts: dict[str, int]
    warehouse: Path
    quantization_job: QuantizationJob | None = None


def demo(
    generated_tokens: Annotated[
        int, typer.Option(help="Tokens generated per sequence in a benchmark run.", min=1)
    ] = 8,
    prompt_tokens: Annotated[
        int, typer.Option(help="Prompt tokens per sequence in a benchmark run.", min=1)
    ] = 16,
    warmups: Annotated[
        int, typer.Option(help="Warm-up runs before the measured runs of each benchmark.", min=0)
    ] = 1,
    quality_windows: Annotated[
        int, typer.Option(help="Windows of 512 tokens to measure perplexity on.", min=1)
    ] = 8,
    kv_cache_windows: Annotated[
        int,
        typer.Option(
            help="Windows of 2048 tokens to compare quantized KV caches with F16 on; 0: none.",
            min=0,
        ),
    ] = 3,
    obedience: Annotated[
        bool,
        typer.Option(
            "--obedience/--no-obedience",
            help="Measure how well each variant follows instructions.",
        ),
    ] = True,
    obedience_prompts: Annotated[
        int,
        typer.Option(help="Instructions to measure obedience on, from all categories.", min=1),
    ] = 24,
) -> Reply[DemoDocument]:
    """Build listings, artifacts, benchmarks and marts, then show the best offers.

    Existing artifacts, and records with the same settings, are reused.
    """
    # Importing Dagster takes seconds; the other commands must not pay for it.
    from quant_assets.resources.instance import dagster_environment

    settings = get_settings()
    os.environ.update(dagster_environment(settings))
    # The output of the steps, dbt's log above all, is in their compute logs.
    with standard_output_hidden(), warnings.catch_warnings():
        _ignore_maturity_warnings()
        from quant_assets.automation.full_run import run_everything
        from quant_assets.definitions import defs

        job = run_everything(
            settings,
            defs.resolve_job_def,
            overrides={
                "generated_tokens": generated_tokens,
                "prompt_tokens": prompt_tokens,
                "warmups": warmups,
            },
            quality={
                "windows": quality_windows,
                "kv_cache_windows": kv_cache_windows,
                "obedience": obedience,
                "obedience_prompts": obedience_prompts,
            },
            report_line=notify,
        )
    with Warehouse(settings.warehouse).read() as connection:
        document = DemoDocument(
            best_offers=cheapest_deployment_options(connection, TOP_ROWS),
            row_counts=row_counts(connection),
            warehouse=settings.warehouse,
            quantization_job=job,
        )
    return Reply(document, _show)


def _ignore_maturity_warnings() -> None:
    """Silence Dagster's warnings about the maturity of its own API."""
    import dagster as dg

    for category in (dg.BetaWarning, dg.PreviewWarning, dg.SupersessionWarning):
        warnings.simplefilter("ignore", category)


def _show(document: DemoDocument) -> None:
    table = Table(title="deployment_options: the cheapest slot per variant")
    for column in ("offer", "variant", "GPU", "seller", "price $", "copies", "$ per slot"):
        right = column in ("price $", "copies", "$ per slot")
        table.add_column(column, justify="right" if right else "left")
    for option in document.best_offers:
        table.add_row(
            "rent, per hour" if option.price_kind == "hourly" else "buy",
            option.variant,
            f"{option.gpu_count} x {option.gpu}" if option.gpu_count > 1 else option.gpu,
            option.seller or "",
            f"{option.price_usd:,.2f}",
            str(option.copies),
            f"{option.usd_per_slot:,.4f}",
        )
    console = output_console()
    console.print(table)
    counts = ", ".join(f"{name} {rows}" for name, rows in document.row_counts.items())
    console.print(counts, soft_wrap=True)
    console.print(f"DuckDB file: {document.warehouse}", soft_wrap=True)
    console.print("Open the UI:  make ui")
    query = "from marts.deployment_options limit 10"
    console.print(f"Query it:     .venv/bin/quant-assets sql '{query}'", soft_wrap=True)
