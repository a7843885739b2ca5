"""The comparison with llama.cpp's tools: arguments and artifacts are checked before the build."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from quant_assets.settings import PROJECT_ROOT


@pytest.fixture
def peers(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The script, imported with its folder on the path, as when it runs."""
    monkeypatch.syspath_prepend(str(PROJECT_ROOT / "benchmarks"))
    import peers as script

    yield script
    for name in ("peers", "arguments"):
        sys.modules.pop(name, None)


@pytest.mark.parametrize(
    "arguments",
    [
        ("--levels", "Q4_K_XL"),
        ("--levels", ""),
        ("--batch-sizes", "1,0"),
        ("--batch-sizes", "one"),
        ("--rounds", "1"),
        ("--runs", "-1"),
        ("--windows", "0"),
        ("--prompt-tokens", "1e3"),
        ("--only", "both"),
        ("--model", "F16"),
        ("--model", "F16=/there/is/no/such/file"),
        ("--only", "quality", "--model", f"Q8_0={__file__}"),
    ],
)
def test_wrong_arguments_are_refused(peers: ModuleType, arguments: tuple[str, ...]) -> None:
    with pytest.raises(SystemExit) as refusal:
        peers.parse_arguments(arguments)
    assert refusal.value.code == 2


def test_arguments(peers: ModuleType) -> None:
    parsed = peers.parse_arguments(("--levels", "q4_k_m,F16,Q4_K_M", "--batch-sizes", "4,1,4"))
    assert parsed.levels == ("Q4_K_M", "F16") and parsed.batch_sizes == (4, 1)
    one = peers.parse_arguments(
        ("--only", "quality", "--rounds", "1", "--model", f"F16={__file__}")
    )
    assert peers.find_models(one.levels, one.model) == {"F16": Path(__file__)}


@pytest.fixture
def script(
    peers: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., list[tuple[str, Any]]]:
    """Runs the script with the given artifacts and returns its steps in order."""

    def run(*arguments: str, artifacts: tuple[str, ...]) -> list[tuple[str, Any]]:
        done: list[tuple[str, Any]] = []

        def find(variant: Any) -> SimpleNamespace | None:
            level = variant.level
            return SimpleNamespace(path=Path(level)) if level in artifacts else None

        def quality(_programs: Path, models: dict[str, Path], *_: Any) -> list[Any]:
            done.append(("quality", models))
            return []

        monkeypatch.setattr(sys, "argv", ["peers.py", *arguments])
        monkeypatch.setattr(peers, "load_models", lambda _: [SimpleNamespace(name="tiny")])
        monkeypatch.setattr(peers, "artifact_finder", lambda *_: find)
        monkeypatch.setattr(peers, "build_tools", lambda folder: done.append(("build", folder)))
        monkeypatch.setattr(
            peers, "compare_speed", lambda _, models, *__: done.append(("speed", models)) or []
        )
        monkeypatch.setattr(peers, "compare_quality", quality)
        monkeypatch.setattr(
            peers, "evaluation_text", lambda *_: SimpleNamespace(name="text", path=Path("text"))
        )
        with pytest.raises(SystemExit) as end:
            peers.main()
        return [*done, ("exit", end.value.code)]

    return run


def test_quality_is_compared_with_the_baseline_whatever_the_levels(
    script: Callable[..., list[tuple[str, Any]]],
) -> None:
    done = script(
        "--levels", "Q4_K_M", "--only", "quality", "--build", "b", artifacts=("F16", "Q4_K_M")
    )
    models = {"F16": Path("F16"), "Q4_K_M": Path("Q4_K_M")}
    assert done == [("build", Path("b")), ("quality", models), ("exit", 0)]


def test_speed_is_compared_on_the_levels_alone(
    script: Callable[..., list[tuple[str, Any]]],
) -> None:
    done = script("--levels", "Q4_K_M", "--build", "b", artifacts=("F16", "Q4_K_M"))
    assert [name for name, _ in done] == ["build", "speed", "quality", "exit"]
    assert dict(done)["speed"] == {"Q4_K_M": Path("Q4_K_M")}


def test_a_missing_artifact_is_reported_before_the_tools_are_built(
    script: Callable[..., list[tuple[str, Any]]],
) -> None:
    done = script("--levels", "Q4_K_M", artifacts=("Q4_K_M",))
    assert done == [("exit", "tiny has no F16 artifact; run `make demo` first")]
