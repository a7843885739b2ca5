"""`quant-assets speed`: fit the speed model to measured runs, and check it against them."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

import typer
from pydantic import BaseModel
from rich.table import Table

from quant_assets.cli.output import output_console
from quant_assets.cli.presentation import CommandLine, Reply
from quant_assets.cli.verbosity import notify
from quant_assets.gpus.registry import load_registry
from quant_assets.settings import get_settings
from quant_assets.speed.checking import ErrorFigures, PhaseFigures, SpeedCheck, Target
from quant_assets.speed.fitting import fit_and_cross_validate
from quant_assets.speed.model import load_speed_model
from quant_assets.speed.run_check import (
    RunCheck,
    check_cross_validated,
    check_runs,
    cross_validate_runs,
)
from quant_assets.speed.runs import read_runs
from quant_assets.speed.selection import Selection, select_runs

speed = CommandLine(
    help="Fit the speed model to measured runs, and check its predictions.",
    no_args_is_help=True,
)

Runs = Annotated[
    list[Path],
    typer.Option(
        help="CSV file of measured runs; repeatable. Format: docs/speed_runs.md.", exists=False
    ),
]


class SpeedFitDocument(BaseModel):
    """The fit: where it was written, how many runs of how many GPUs it rests on, and how true it is.

    The figures are cross-validated: each run is predicted by a fit to the runs of other GPUs.
    """

    output: Path
    rows: int
    fitted_rows: int
    gpus: int
    dense: SpeedCheck
    mixtures_of_experts: SpeedCheck
    left_out_by_reason: dict[str, int]


class SpeedCheckDocument(RunCheck):
    """How true predicted speeds are, by table, and the prediction of every row."""


@speed.command()
def fit(
    runs: Runs,
    output: Annotated[
        Path | None,
        typer.Option(
            help="Where to write the model (default: speed_model.yaml in the data folder)."
        ),
    ] = None,
) -> Reply[SpeedFitDocument]:
    """Fit the speed model to measured runs on single GPUs, and write it.

    The errors shown are cross-validated: each run is predicted by a fit to the runs of other GPUs.
    """
    registry = load_registry()
    selection = select_runs(read_runs(runs), registry)
    chosen = selection.fitted
    sources = {item.source for item in chosen if item.source}
    model, predictions = fit_and_cross_validate(
        [item.observation for item in chosen], registry, sources
    )
    path = output or get_settings().data / "speed_model.yaml"
    model.save(path)
    validated = check_cross_validated(Selection(tuple(chosen), selection.left_out), predictions)
    document = SpeedFitDocument(
        output=path,
        rows=len(selection.selected) + len(selection.left_out),
        fitted_rows=len(chosen),
        gpus=len({item.gpu.canonical_name for item in chosen}),
        dense=validated.dense,
        mixtures_of_experts=validated.mixtures_of_experts,
        left_out_by_reason=validated.left_out_by_reason,
    )
    return Reply(document, _show_fit)


@speed.command()
def check(
    runs: Runs,
    cross_validate: Annotated[
        bool,
        typer.Option(
            "--cross-validate",
            help="Predict each GPU by a fit to the others' runs, in place of the shipped model.",
        ),
    ] = False,
) -> Reply[SpeedCheckDocument]:
    """Predict each measured run without looking at its speed, and show how true that was."""
    registry = load_registry()
    selection = select_runs(read_runs(runs), registry)
    model = load_speed_model()
    if cross_validate:
        result = cross_validate_runs(selection, registry, model)
    else:
        result = check_runs(selection, model)
    return Reply(SpeedCheckDocument.model_validate(dict(result)), _show_check)


def _show_fit(document: SpeedFitDocument) -> None:
    console = output_console()
    console.print(
        f"Fitted to {document.fitted_rows} of {document.rows} rows, on {document.gpus} GPUs.",
        soft_wrap=True,
    )
    console.print(
        _phases(
            "Cross-validated by GPU",
            {"dense": document.dense, "mixtures of experts": document.mixtures_of_experts},
        )
    )
    console.print(_targets(document.dense.targets))
    console.print(_reasons(document.left_out_by_reason))
    notify(f"model: {document.output}")


def _show_check(document: SpeedCheckDocument) -> None:
    console = output_console()
    console.print(_summary(document), soft_wrap=True)
    console.print(
        _phases(
            "Errors |predicted / measured - 1| and 90 % intervals",
            {
                "dense": document.dense,
                "mixtures of experts": document.mixtures_of_experts,
                "several GPUs, split by layers": document.several_gpus,
                **document.other_engines,
            },
        )
    )
    console.print(_targets(document.dense.targets))
    for phase, figures in (("Decode", document.dense.decode), ("Prefill", document.dense.prefill)):
        console.print(_properties(f"{phase}, dense models on one GPU", figures))
    console.print(_worst(document))
    console.print(_reasons(document.left_out_by_reason))


def _summary(document: SpeedCheckDocument) -> str:
    by = (
        "each GPU by a fit to the others"
        if document.predicted_by == "cross-validation"
        else "by the shipped model"
    )
    seen = (
        f" {document.rows_of_seen_gpus} of them are on GPUs whose runs the model was fitted to:"
        " for those, --cross-validate is the test."
        if document.rows_of_seen_gpus
        else ""
    )
    return (
        f"{document.predicted_rows} of {document.rows} rows predicted, {by}.{seen} "
        f"{document.generic_shapes} have a generic shape, {document.computed_sizes} a computed size."
    )


def _phases(title: str, checks: Mapping[str, SpeedCheck]) -> Table:
    table = _figures_table(title, "runs")
    for name, found in checks.items():
        for phase, figures in (("decode", found.decode.all), ("prefill", found.prefill.all)):
            if figures.n:
                _add_figures(table, f"{name}, {phase}", figures)
    return table


def _properties(title: str, figures: PhaseFigures) -> Table:
    table = _figures_table(title, "property")
    for name, groups in (
        ("batch", figures.by_batch),
        ("depth", figures.by_depth),
        ("tokens per pass", figures.by_tokens_per_pass),
        ("level", figures.by_level),
        ("GPU", figures.by_gpu),
    ):
        for key, found in groups.items():
            _add_figures(table, f"{name} {key}", found)
        table.add_section()
    return table


def _figures_table(title: str, first: str) -> Table:
    table = Table(title=title, title_justify="left")
    table.add_column(first)
    for column in ("n", "median", "90th", "in interval", "high / low"):
        table.add_column(column, justify="right")
    return table


def _add_figures(table: Table, name: str, figures: ErrorFigures) -> None:
    width = figures.mean_width
    table.add_row(
        name,
        str(figures.n),
        _percent(figures.median_error),
        _percent(figures.p90_error),
        _percent(figures.coverage),
        "-" if width is None else f"{width:.2f}",
    )


def _targets(targets: Sequence[Target]) -> Table:
    table = Table(title="Limits, dense models on one GPU", title_justify="left")
    table.add_column("limit")
    for column in ("n", "found", "allowed", "met"):
        table.add_column(column, justify="right")
    for target in targets:
        show = _ratio if target.high > 1 else _percent
        allowed = show(target.high)
        if target.low is not None:
            allowed = f"{show(target.low)} to {allowed}"
        met = "-" if target.met is None else "yes" if target.met else "no"
        table.add_row(target.name, str(target.n), show(target.value), allowed, met)
    return table


def _worst(document: SpeedCheckDocument) -> Table:
    table = Table(title="Largest errors, dense models on one GPU", title_justify="left")
    for column in ("row", "GPU", "model", "level", "test"):
        table.add_column(column)
    for column in ("measured", "predicted"):
        table.add_column(column, justify="right")
    table.add_column("likely reason")
    for item in document.worst:
        row = item.prediction
        table.add_row(
            row.row_id,
            row.gpu,
            row.model,
            row.level,
            f"{row.test}, batch {row.batch}, depth {row.mean_depth_tokens:.0f}",
            f"{row.measured:.4g}",
            f"{row.predicted:.4g}",
            item.likely_reason,
        )
    return table


def _reasons(left_out: Mapping[str, int]) -> Table:
    table = Table(title="Rows left out", title_justify="left")
    table.add_column("reason")
    table.add_column("rows", justify="right")
    for reason, number in left_out.items():
        table.add_row(reason, str(number))
    return table


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.1%}"


def _ratio(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"
