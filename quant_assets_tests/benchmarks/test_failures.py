"""SC-006: a failure counts as resolved only if its message says how, and that way works."""

from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from quant_assets_tests.benchmarks.scripts import imported

QUICK = (
    "listing without titles", "fp8 on an old gpu", "unknown gpu", "parameters that are not a number",
    "intent that contradicts itself",
)  # fmt: skip


@pytest.fixture(scope="module")
def script() -> Iterator[ModuleType]:
    yield from imported("failures")


def test_there_are_sixty_distinct_failures(script: ModuleType) -> None:
    names = {case.name for case in script.CASES}
    assert len(names) == len(script.CASES) >= 60
    assert all(case.cause and case.step for case in script.CASES)


def test_quick_failures_are_resolved_by_their_messages(script: ModuleType, tmp_path: Path) -> None:
    quick = [case for case in script.CASES if case.name in QUICK]
    assert len(quick) == len(QUICK)
    found = script.judged(quick, tmp_path)
    assert found.notes == []
    assert found.id == "SC-006" and found.met is True
    assert all(row["names the cause"] and row["resolved"] for row in found.details)


def estimate(scene: Any, params: str) -> Any:
    return scene.command("estimate", "--params", params)


def wrong_number(scene: Any) -> Any:
    yield estimate(scene, "seven")
    return estimate(scene, "7B")


def step_that_does_not_help(scene: Any) -> Any:
    yield estimate(scene, "seven")
    return estimate(scene, "eight")


def no_failure(scene: Any) -> Any:
    yield estimate(scene, "7B")
    return estimate(scene, "7B")


def test_the_judge_can_say_no(script: ModuleType, tmp_path: Path) -> None:
    cause, step = ("number of parameters",), ("Write 7B",)
    cases = [
        script.Case("good", cause, step, wrong_number),
        script.Case("cause is not named", ("page 12 of the manual",), step, wrong_number),
        script.Case("step is not said", cause, ("call the support line",), wrong_number),
        script.Case("step does not help", cause, step, step_that_does_not_help),
        script.Case("no failure", cause, step, no_failure),
    ]
    stock = script.Stock(tmp_path / "stock")
    results = [script.run_case(case, stock, tmp_path / case.name) for case in cases]
    assert [result.cause_problem is None for result in results] == [True, False, True, True, False]
    assert [result.step_problem is None for result in results] == [True, True, False, False, False]
    assert "lacks 'call the support line'" in results[2].step_problem
    assert "'eight' is not a number of parameters" in results[3].step_problem
    assert script.criterion(results).measured.startswith("1 of 5 provoked failures")
    assert script.criterion(results).met is False
