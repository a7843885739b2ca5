"""Listings end to end: time, peak memory and growth, against a loop over rows.

Synthetic rows of a CSV file are read, normalized, enriched with capacity columns and written. Each
run has its own process, so that peak memory is its own. The loop applies the same rules row by row
in plain Python; it is timed on a sample and scaled to all rows.
"""

import argparse
import csv
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from itertools import islice
from pathlib import Path

import duckdb
from arguments import existing_folder, positive
from process_memory import tree_memory
from rich.console import Console
from rich.table import Table

from quant_assets.gpus.registry import load_registry
from quant_assets.listings.enrichment import card_table, chosen_strategies
from quant_assets.listings.matching.matcher import TitleMatcher
from quant_assets.listings.pipeline import PipelineOptions, run_pipeline
from quant_assets.listings.prices.exchange_rates import load_exchange_rates
from quant_assets.listings.prices.reading import read_price

_SELLERS = 400
_SAMPLE_INTERVAL_S = 0.05
_LOOP_SAMPLE = 20_000
_BOARD_MAKERS = ("ASUS", "MSI", "Gigabyte", "PNY", "ZOTAC", "Palit", "Dell OEM", "HP", "Lenovo", "")
_EDITIONS = ("OC", "Gaming", "Turbo", "Dual", "White", "retail", "bulk", "low profile", "v2", "")
_CONDITIONS = ("new", "used", "refurbished", "open box", "tested", "")
_ACCESSORIES = ("heat sink for {}", "{} box only", "power cable for {}")


def synthetic_titles(distinct: int, seed: int) -> list[str]:
    """`distinct` titles: cards as sellers name them, some accessories, some unrelated items."""
    choose = random.Random(seed)
    names = [gpu.canonical_name for gpu in load_registry().all]
    titles: dict[str, None] = {}
    while len(titles) < distinct:
        name = choose.choice(names)
        kind = choose.random()
        if kind < 0.05:
            title = choose.choice(_ACCESSORIES).format(name)
        elif kind < 0.08:
            title = f"office desk model {choose.randrange(100_000)}"
        else:
            parts = (choose.choice(_BOARD_MAKERS), name, choose.choice(_EDITIONS))
            title = " ".join((*parts, choose.choice(_CONDITIONS), f"#{choose.randrange(1000)}"))
        titles[" ".join(title.split())] = None
    return list(titles)


def write_listings(path: Path, rows: int, distinct: int, seed: int) -> None:
    """Write `rows` listings over `distinct` titles as CSV."""
    title_file = path.with_suffix(".titles.json")
    title_file.write_text(json.dumps([{"title": t} for t in synthetic_titles(distinct, seed)]))
    with duckdb.connect(":memory:") as connection:
        connection.execute(
            """
            COPY (
                WITH titles AS (
                    SELECT title, row_number() OVER () - 1 AS number FROM read_json(?)
                ), offers AS (
                    SELECT range AS id, hash(range) AS h FROM range(?)
                )
                SELECT title, 'seller ' || (h // 7919 % ?)::VARCHAR AS seller,
                       '$' || format('{:,}', 100 + (h // 104729 % 20000)::BIGINT) || '.00' AS price,
                       'USD' AS currency, 'https://offers.example/' || id::VARCHAR AS url,
                       'used' AS condition
                FROM offers JOIN titles ON offers.h % ? = titles.number
            ) TO ? (FORMAT csv, HEADER true)
            """,
            [str(title_file), rows, _SELLERS, distinct, str(path)],
        ).fetchall()


def time_pipeline(source: Path, output: Path) -> dict[str, float]:
    """Run the pipeline once in this process; return seconds, CPU seconds and enriched rows.

    CPU seconds include those of child processes.
    """
    start, cpu_start = time.perf_counter(), _cpu_seconds()
    result = run_pipeline([source], output, PipelineOptions(quantize_metric=True))
    seconds = time.perf_counter() - start
    cpu_seconds = _cpu_seconds() - cpu_start
    return {
        "seconds": seconds,
        "cpu_seconds": cpu_seconds,
        "enriched": result.counts["enriched"],
    }


def _cpu_seconds() -> float:
    return sum(os.times()[:4])


def time_loop(source: Path, output: Path, rows: int) -> float:
    """Seconds per row of the plain loop over the first `rows` rows."""
    registry = load_registry()
    matcher, rates = TitleMatcher(registry), load_exchange_rates()
    table = card_table(registry, chosen_strategies((4,), 2.0, True))
    cards = {row["canonical_name"]: row for row in table.to_dict("records")}
    seen: set[tuple[object, ...]] = set()
    start = time.perf_counter()
    with source.open(newline="") as stream, output.open("w", newline="") as target:
        writer = csv.writer(target)
        for row in islice(csv.DictReader(stream), rows):
            match = matcher.match(row["title"])
            price = read_price(row["price"], row["currency"])
            key = (row["seller"], match.canonical_name, price.amount, row["url"])
            if match.canonical_name is None or price.reason is not None or key in seen:
                continue
            seen.add(key)
            usd = rates.usd(price.amount or 0.0, price.currency or "USD")
            writer.writerow([*row.values(), usd, *cards[match.canonical_name].values()])
    return (time.perf_counter() - start) / rows


def run_apart(source: Path, output: Path) -> dict[str, float]:
    """`time_pipeline` in a fresh process, with the peak memory of its process tree in GB."""
    command = [sys.executable, __file__, "--one", str(source), str(output)]
    peak = 0
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        while process.poll() is None:
            peak = max(peak, tree_memory(process.pid)[0])
            time.sleep(_SAMPLE_INTERVAL_S)
        assert process.stdout is not None
        printed = process.stdout.read()
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)
    measured: dict[str, float] = json.loads(printed.splitlines()[-1])
    return {**measured, "peak_gb": peak / 1e9}


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=positive, default=1_000_000)
    parser.add_argument("--titles", type=positive, default=20_000)
    parser.add_argument(
        "--no-tenfold", action="store_true", help="skip the run with ten times the rows"
    )
    parser.add_argument(
        "--folder", type=existing_folder, help="folder for the files; a temporary one by default"
    )
    parser.add_argument("--one", nargs=2, type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(time_pipeline(*arguments.one)))
        return
    console = Console()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        folder = Path(name)
        table = Table(
            "run", "rows", "seconds", "CPU s", "peak GB", "rows/s", "relative to the first"
        )
        sizes = [arguments.rows] + ([] if arguments.no_tenfold else [arguments.rows * 10])
        first = 0.0
        for rows in sizes:
            source = folder / f"listings_{rows}.csv"
            write_listings(source, rows, arguments.titles, seed=7)
            measured = run_apart(source, folder / f"enriched_{rows}.csv")
            first = first or measured["seconds"]
            table.add_row(
                "pipeline",
                f"{rows:,}",
                f"{measured['seconds']:.2f}",
                f"{measured['cpu_seconds']:.2f}",
                f"{measured['peak_gb']:.2f}",
                f"{rows / measured['seconds']:,.0f}",
                f"{measured['seconds'] / first:.2f}x",
            )
        source = folder / f"listings_{arguments.rows}.csv"
        sample = min(_LOOP_SAMPLE, arguments.rows)
        seconds = time_loop(source, folder / "loop.csv", sample) * arguments.rows
        table.add_row(
            f"per-row loop (scaled from {sample:,} rows)",
            f"{arguments.rows:,}",
            f"{seconds:.1f}",
            "",
            "",
            f"{arguments.rows / seconds:,.0f}",
            f"{seconds / first:.1f}x",
        )
        console.print(table)


if __name__ == "__main__":
    main()
