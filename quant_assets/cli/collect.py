"""`quant-assets collect`: gather all benchmark records into one CSV file and the warehouse."""

from pathlib import Path
from typing import Annotated

import typer

from quant_assets.bench.collect import collect_csv
from quant_assets.bench.results import ResultStore
from quant_assets.cli.output import print_line
from quant_assets.settings import get_settings
from quant_assets.warehouse.loads.measurements import load_benchmarks
from quant_assets.warehouse.rebuild import warehouse_of


def collect(
    results_dir: Annotated[
        Path | None, typer.Option(help="Folder of the benchmark records.")
    ] = None,
    output_csv: Annotated[Path, typer.Option(help="CSV file to write.")] = Path("summary.csv"),
) -> None:
    """Gather benchmark records into a CSV file; those of the data root also go into DuckDB."""
    settings = get_settings()
    folder = results_dir or settings.results
    count = collect_csv(folder, output_csv)
    print_line(f"{count} records in {output_csv}")
    if folder.resolve() == settings.results.resolve():
        with warehouse_of(settings).write() as connection:
            rows = load_benchmarks(connection, ResultStore(folder))
        print_line(f"{rows} records in {settings.warehouse}")
