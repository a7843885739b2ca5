"""SC-003: the matrix is whole and always the same, and its judge accepts and refuses."""

from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from quant_assets.formats.gguf_levels import GGUF_LEVELS
from quant_assets_tests.benchmarks.scripts import imported

DAMAGES_ITS_OUTPUT = """
import atexit, pathlib
def damage():
    for file in pathlib.Path("the results").glob("*.gguf"):
        file.write_bytes(file.read_bytes()[:-5000])
atexit.register(damage)
"""


@pytest.fixture(scope="module")
def script() -> Iterator[ModuleType]:
    yield from imported("operations")


def test_the_matrix_is_whole_and_always_the_same(script: ModuleType) -> None:
    listed = script.operations()
    assert len(listed) == script.OPERATIONS == 200
    assert listed == script.operations()
    assert script.operations(7) == listed[:7]
    assert {each.fault for each in listed} == set(script.FAULTS)
    assert {each.kind for each in listed} == {
        "gguf", "imatrix", "gptq", "awq", "convert", "validate", "info", "estimate",
    }  # fmt: skip
    made = {each.options[-1] for each in listed if each.kind == "gguf"}
    assert made == {level.name for level in GGUF_LEVELS}
    assert set(script.SPECIFIED_LEVELS) <= made
    assert {each.options[1] for each in listed if each.kind == "gptq"} == {"2", "3", "4", "8"}


def test_operations_are_run_and_judged(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    damaging = script._Fault(script._with_prelude(DAMAGES_ITS_OUTPUT))
    monkeypatch.setitem(script.FAULTS, "damages its output", damaging)
    quantizing = ("gguf", "hf:llama", ("--level", "Q4_0"))
    found = script.judged(
        [
            script.Operation(*quantizing, "foreign remains"),
            script.Operation(*quantizing, "damages its output"),
            script.Operation("estimate", "params:7B", ("--level", "Q8_0"), "unwritable data root"),
            script.Operation("estimate", "params:7B", ("--level", "Q9_9")),
        ],
        tmp_path,
    )
    assert found.id == "SC-003"
    assert found.measured.startswith("2 of 4 operations")
    assert found.met is False
    damaged, refused = found.notes
    assert damaged.startswith("gguf hf:llama --level Q4_0 [damages its output]: ")
    assert "exit code 3: There is no GGUF level 'Q9_9'" in refused
    counts = {row["value"]: row["valid"] for row in found.details if row["by"] == "fault"}
    assert counts == {
        "foreign remains": 1, "damages its output": 0, "unwritable data root": 1, "none": 0,
    }  # fmt: skip

    (whole,) = (tmp_path / "operation 1" / "the results").glob("*.gguf")
    weights = script.count_weights(str(whole))
    assert script.problem_of_gguf(whole, weights, "Q4_0") is None
    assert "weights" in script.problem_of_gguf(whole, weights + 1, "Q4_0")
    assert "bits per weight" in script.problem_of_gguf(whole, weights, "Q8_0")
    whole.write_bytes(whole.read_bytes() + bytes(100))
    assert "tensors end" in script.problem_of_gguf(whole, weights, "Q4_0")


def test_what_is_not_installed_is_left_out_and_counted(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(script, "has_environment", lambda _: False)
    found = script.judged([script.Operation("convert", "gptq", ("--to", "hf"))], tmp_path)
    assert found.met is None
    assert found.notes == ["Left out for want of an environment: 1."]
