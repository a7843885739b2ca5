"""Aggregate result files into one table."""

import csv
import io
from pathlib import Path

from quant_assets.atomic_files import write_text_atomically
from quant_assets.bench.record import BenchmarkRecord
from quant_assets.bench.results import ResultStore
from quant_assets.errors import InputError
from quant_assets.spreadsheet_cells import neutralized


def collect_csv(results: Path, output: Path) -> int:
    """Write all records of a folder to a CSV file, oldest first; return their number.

    Raises `InputError` when the folder has none.
    """
    records: list[BenchmarkRecord] = ResultStore(results).find()
    if not records:
        raise InputError(
            f"There are no benchmark records in {results}.",
            "The folder does not exist or has no result files.",
            "Run `quant-assets bench` first, or name another folder.",
        )
    rows = [
        {
            name: neutralized(value) if isinstance(value, str) else value
            for name, value in record.flat().items()
        }
        for record in records
    ]
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text_atomically(output, text.getvalue())
    return len(rows)
