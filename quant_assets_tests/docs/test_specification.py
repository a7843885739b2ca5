"""The traceability page: every requirement has a proof, and every proof it names exists."""

import ast
import re
from functools import cache
from typing import NamedTuple

import pytest
from typer.main import get_command

from quant_assets.cli.app import app
from quant_assets.settings import PROJECT_ROOT

_PAGE = (PROJECT_ROOT / "docs" / "specification.md").read_text(encoding="utf-8")
_ROW = re.compile(r"^\| ([A-Z]+-?\d[\d.]*) \| (.+) \| (.*) \| (.*) \|$", re.MULTILINE)
_TEST = re.compile(r"`([\w/]+\.py)::(test_\w+)`")


class Requirement(NamedTuple):
    """A row of the page."""

    id: str
    text: str
    where: str
    proofs: str


REQUIREMENTS = [Requirement(*row) for row in _ROW.findall(_PAGE)]


@cache
def functions_of(path: str) -> set[str]:
    tree = ast.parse((PROJECT_ROOT / "quant_assets_tests" / path).read_text(encoding="utf-8"))
    return {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}


def test_every_numbered_requirement_is_listed_once() -> None:
    ids = [requirement.id for requirement in REQUIREMENTS]
    assert len(ids) == len(set(ids))
    numbered = (
        [f"FR-{number:03}" for number in range(1, 12)]
        + [f"SC-{number:03}" for number in range(1, 7)]
        + [f"E{number}" for number in range(1, 6)]
        + [f"US{story}.{number}" for story, count in enumerate((3, 3, 2, 2), 1) for number in range(1, count + 1)]
    )  # fmt: skip
    assert set(numbered) <= set(ids)


@pytest.mark.parametrize("requirement", REQUIREMENTS, ids=lambda requirement: requirement.id)
def test_the_tests_that_prove_it_exist(requirement: Requirement) -> None:
    named = _TEST.findall(requirement.proofs)
    assert named, "no test is named"
    assert all(name in functions_of(path) for path, name in named)


def test_the_commands_that_show_it_exist() -> None:
    commands = getattr(get_command(app), "commands")  # noqa: B009, typer's group has no public type
    named = set(re.findall(r"`quant-assets ([a-z][a-z-]*)", _PAGE))
    assert named
    assert named <= set(commands)
