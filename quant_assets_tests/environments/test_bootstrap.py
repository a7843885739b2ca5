"""Set-up: anything that is missing is reported in one clear sentence."""

import sys
from pathlib import Path
from types import ModuleType

import pytest


def failure(bootstrap: ModuleType, *arguments: str) -> str:
    with pytest.MonkeyPatch.context() as patch, pytest.raises(bootstrap.SetupError) as raised:
        patch.setattr(sys, "argv", ["bootstrap.py", *arguments])
        bootstrap.make_environment("main", [], False)
    return str(raised.value)


def test_an_old_python_is_refused(bootstrap: ModuleType, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(bootstrap, "MINIMUM_PYTHON", (99, 0))
    assert "is too old" in failure(bootstrap)


def test_a_full_disk_is_refused_before_any_work(
    bootstrap: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    monkeypatch.setattr(bootstrap, "PROJECT", tmp_path)
    monkeypatch.setattr(bootstrap, "NEEDED_GB", {"main": {"cpu": 10**9, "cuda": 10**9}})
    assert "free some space" in failure(bootstrap)
    assert list(tmp_path.iterdir()) == []


def test_a_missing_compiler_is_reported_with_instructions(
    llama_build: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(llama_build.SetupError, match=r"apt-get install g\+\+"):
        llama_build.compiler()


@pytest.mark.parametrize(
    ("output", "reason"),
    [
        ("error: [Errno 28] No space left on device", "the disk is full"),
        ("ERROR: No matching distribution found for uv==0.13.8", "check the network"),
        ("error sending request for url", "check the network"),
        ("Because there is no version of torch==2.13.0+cpu", "does not have this release"),
        ("Hash mismatch for `torch==2.13.0`", "differs from the pinned one"),
        ("something else", "its last lines are above"),
    ],
)
def test_a_failed_step_gives_its_reason(
    steps: ModuleType, output: str, reason: str, capsys: pytest.CaptureFixture[str]
):
    script = f"import sys; print({output!r}, file=sys.stderr); sys.exit(1)"
    with pytest.raises(steps.SetupError, match=reason):
        steps.run([sys.executable, "-c", script], "A step failed")
    assert output in capsys.readouterr().err


def test_the_build_depends_on_flags_and_processor(
    llama_build: ModuleType, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.delenv("CMAKE_ARGS", raising=False)
    plain = llama_build.build_key()
    assert llama_build.build_key() == plain
    monkeypatch.setenv("CMAKE_ARGS", "-DGGML_CUDA=ON")
    assert llama_build.build_key() != plain


def test_the_build_omits_amx(llama_build: ModuleType):
    arguments = llama_build.cmake_args(llama_build.compiler())
    assert "-DLLAVA_BUILD=OFF" in arguments
    if "-mno-amx" in arguments:
        assert all(flag in arguments for flag in llama_build.NO_AMX)


def test_kernels_that_do_not_compile_do_not_stop_set_up(
    bootstrap: ModuleType, capsys: pytest.CaptureFixture[str]
):
    bootstrap._build_kernels(Path("/bin/false"))
    assert "will be slower" in capsys.readouterr().err


def test_an_environment_that_is_a_link_is_created_at_its_target(
    bootstrap: ModuleType, tmp_path: Path
):
    place, link = tmp_path / "elsewhere", tmp_path / ".venv"
    place.mkdir()
    (place / "old").touch()
    link.symlink_to(place)
    bootstrap._create_venv(link)
    assert link.is_symlink()
    assert (place / "bin" / "python").exists()
    assert not (place / "old").exists()


def test_python_newer_than_the_pins_is_refused(
    bootstrap: ModuleType, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(bootstrap, "PINNED_BEFORE", (3, 0))
    assert "newer than the pinned packages" in failure(bootstrap)


def test_a_stale_environment_needs_only_the_missing_space(
    bootstrap: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    monkeypatch.setattr(bootstrap, "PROJECT", tmp_path)
    held = tmp_path / ".venv"
    held.mkdir()
    (held / "package").write_bytes(b"x" * 8_000_000)
    monkeypatch.setattr(bootstrap, "NEEDED_GB", {"main": {"cpu": 10**6, "cuda": 10**6}})
    assert f"needs {10**6 - 0.008:.1f} GB more" in failure(bootstrap)


@pytest.mark.parametrize("damage", [b"", b"pins", b"\xff\xfe", b"pins=1\npython\n"])
def test_an_environment_without_a_complete_stamp_is_incomplete(
    bootstrap: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, damage: bytes
):
    monkeypatch.setattr(bootstrap, "PROJECT", tmp_path)
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    (tmp_path / ".venv" / "bin" / "python").touch()
    (tmp_path / ".venv" / "quant-assets.stamp").write_bytes(damage)
    target = bootstrap._Target("main", [])
    assert not target.is_made()
    assert not target.is_usable()


@pytest.mark.parametrize(
    ("choice", "gpu", "installed", "right"),
    [
        (None, False, "cpu", True),
        (None, False, "cuda", True),  # the CPU build was unavailable
        (None, True, "cpu", False),  # a GPU was added
        (None, True, "cuda", True),
        ("cpu", True, "cpu", True),
        ("cpu", False, "cuda", False),
        ("cuda", False, "cpu", False),
        (None, False, "", False),
    ],
)
def test_builds_of_torch_that_can_stay(
    torch_build: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    choice: str | None,
    gpu: bool,
    installed: str,
    right: bool,
):
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(torch_build, "has_nvidia_gpu", lambda: gpu)
    if choice is None:
        monkeypatch.delenv(torch_build.CHOICE, raising=False)
    else:
        monkeypatch.setenv(torch_build.CHOICE, choice)
    assert torch_build.is_right(installed) is right


def installer(folder: Path, refuses: str) -> list[str | Path]:
    """A program that logs its arguments, and fails to reach the index for arguments with `refuses`."""
    program = folder / "install"
    program.write_text(
        f'#!/bin/sh\necho "$@" >> {folder}/calls\n'
        f'case "$*" in *{refuses}*) echo "dns error"; exit 2;; esac\n'
    )
    program.chmod(0o755)
    return [program]


@pytest.mark.parametrize(
    ("refuses", "build", "last"),
    [
        ("nothing", "cpu", "torch-cpu.txt"),  # the folder of PIP_FIND_LINKS has it
        ("torch-cpu", "cuda", "cuda.txt"),  # no CPU build anywhere
    ],
)
def test_cuda_is_downloaded_only_without_a_reachable_cpu_build(
    torch_build: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    refuses: str,
    build: str,
    last: str,
):
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(torch_build, "has_nvidia_gpu", lambda: False)
    monkeypatch.delenv(torch_build.CHOICE, raising=False)
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    asked: list[str] = []
    assert torch_build.install_torch(installer(tmp_path, refuses), asked.append) == build
    calls = (tmp_path / "calls").read_text().splitlines()
    assert calls[-1].endswith(last)
    assert any("--torch-backend=cpu" in call for call in calls) is (build == "cuda")
    assert asked == (["cuda"] if build == "cuda" else [])


def test_a_requested_cpu_build_is_not_replaced_by_cuda(
    torch_build: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setenv(torch_build.CHOICE, "cpu")
    with pytest.raises(torch_build.SetupError, match="CPU index is unreachable"):
        torch_build.install_torch(installer(tmp_path, "torch-cpu"), lambda _build: None)
    assert "cuda.txt" not in (tmp_path / "calls").read_text()
