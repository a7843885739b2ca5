"""`quant-assets collect`: gather all benchmark records into one CSV file and the warehouse."""

from pathlib import Path
from typing import Annotated

import typer
from pydantic import BaseModel

from quant_assets.bench.collect import collect_csv
from quant_assets.bench.results import ResultStore
from quant_assets.cli.output import print_line
from quant_assets.cli.presentation import Reply
from quant_assets.settings import get_settings
from quant_assets.warehouse.loads.measurements import load_benchmarks
from quant_assets.warehouse.rebuild import warehouse_of


class CollectDocument(BaseModel):
    """The number of records in the CSV file and, of the data root's records, in DuckDB."""

    output_csv: Path
    records: int
    warehouse: Path | None = None
    warehouse_records: int | None = None


def collect(
    results_dir: Annotated[
        Path | None, typer.Option(help="Folder of the benchmark records.")
    ] = None,
    output_csv: Annotated[Path, typer.Option(help="CSV file to write.")] = Path("summary.csv"),
) -> Reply[CollectDocument]:
    """Gather benchmark records into a CSV file; those of the data root also go into DuckDB."""
    settings = get_settings()
    folder = results_dir or settings.results
    count = collect_csv(folder, output_csv)
    document = CollectDocument(output_csv=output_csv, records=count)
    if folder.resolve() == settings.results.resolve():
        with warehouse_of(settings).write() as connection:
            rows = load_benchmarks(connection, ResultStore(folder))
        document.warehouse, document.warehouse_records = settings.warehouse, rows
    return Reply(document, _show)


def _show(document: CollectDocument) -> None:
    print_line(f"{document.records} records in {document.output_csv}")
    if document.warehouse is not None:
        print_line(f"{document.warehouse_records} records in {document.warehouse}")
