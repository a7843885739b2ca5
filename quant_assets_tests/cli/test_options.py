"""Options declared as models."""

from pathlib import Path
from typing import Annotated, Literal

import pytest
import typer
from pydantic import Field
from typer.testing import CliRunner

from quant_assets.cli.options import CommandOptions, takes_models


class Base(CommandOptions):
    size: Annotated[int, typer.Option(help="A size.", min=1)] = 3
    mode: Annotated[Literal["a", "b"], typer.Option(help="A mode.")] = "a"


class Derived(Base):
    names: Annotated[list[str], typer.Option("--name", help="Names.")] = Field(default_factory=list)
    folder: Annotated[Path, typer.Option(help="A folder.")]


def run(*arguments: str) -> tuple[list[object], str, int]:
    app = typer.Typer()
    seen: list[object] = []

    @app.command()
    @takes_models
    def command(
        argument: Annotated[str, typer.Argument()],
        *,
        first: Annotated[bool, typer.Option("--first/--last")] = True,
        options: Derived,
        yes: Annotated[bool, typer.Option("--yes")] = False,
    ) -> None:
        """A command with options."""
        seen.extend([argument, first, options, yes])

    result = CliRunner().invoke(app, list(arguments))
    return seen, result.output, result.exit_code


def test_defaults_and_values_arrive_in_one_model() -> None:
    seen, _, _ = run("x", "--folder", "f")
    assert seen == ["x", True, Derived(folder=Path("f")), False]
    seen, _, _ = run("x", "--folder", "f", "--name", "n", "--name", "m", "--size", "4", "--last")
    assert seen == ["x", False, Derived(folder=Path("f"), names=["n", "m"], size=4), False]


def test_help_has_the_options_in_the_order_of_parameters_and_fields() -> None:
    _, shown, _ = run("--help")
    places = [
        shown.index(name)
        for name in (
            "A command with options",
            "--first",
            "--size",
            "--mode",
            "--name",
            "--folder",
            "--yes",
        )
    ]
    assert places == sorted(places)


@pytest.mark.parametrize(
    "arguments",
    [("x",), ("x", "--folder", "f", "--size", "0"), ("x", "--folder", "f", "--mode", "c")],
)
def test_wrong_usage(arguments: tuple[str, ...]) -> None:
    seen, _, exit_code = run(*arguments)
    assert exit_code == 2 and seen == []
