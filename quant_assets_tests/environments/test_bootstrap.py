"""Set-up: each thing that can be missing is one clear sentence."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

from quant_assets.settings import PROJECT_ROOT


@pytest.fixture
def bootstrap() -> ModuleType:
    path = PROJECT_ROOT / "environments" / "bootstrap.py"
    spec = importlib.util.spec_from_file_location("bootstrap", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def failure(bootstrap: ModuleType, *arguments: str) -> str:
    with pytest.MonkeyPatch.context() as patch, pytest.raises(bootstrap.SetupError) as raised:
        patch.setattr(sys, "argv", ["bootstrap.py", *arguments])
        bootstrap.make_environment("main", [], False)
    return str(raised.value)


def test_an_old_python_is_refused(bootstrap: ModuleType, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(bootstrap, "MINIMUM_PYTHON", (99, 0))
    assert "is too old" in failure(bootstrap)


def test_a_full_disk_is_refused_before_anything_is_made(
    bootstrap: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    monkeypatch.setattr(bootstrap, "PROJECT", tmp_path)
    monkeypatch.setattr(bootstrap, "NEEDED_GB", {"main": 10**9})
    assert "free some space" in failure(bootstrap)
    assert list(tmp_path.iterdir()) == []


def test_a_missing_compiler_says_how_to_get_one(
    bootstrap: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(bootstrap.SetupError, match=r"apt-get install g\+\+"):
        bootstrap._compiler()


@pytest.mark.parametrize(
    ("output", "reason"),
    [
        ("error: [Errno 28] No space left on device", "the disk is full"),
        ("ERROR: No matching distribution found for uv==0.13.8", "check the network"),
        ("error sending request for url", "check the network"),
        ("something else", "its last lines are above"),
    ],
)
def test_a_failed_step_gives_its_reason(
    bootstrap: ModuleType, output: str, reason: str, capsys: pytest.CaptureFixture[str]
):
    script = f"import sys; print({output!r}, file=sys.stderr); sys.exit(1)"
    with pytest.raises(bootstrap.SetupError, match=reason):
        bootstrap._run([sys.executable, "-c", script], "A step failed")
    assert output in capsys.readouterr().err


def test_the_build_depends_on_flags_and_processor(
    bootstrap: ModuleType, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.delenv("CMAKE_ARGS", raising=False)
    plain = bootstrap._build_key()
    assert bootstrap._build_key() == plain
    monkeypatch.setenv("CMAKE_ARGS", "-DGGML_CUDA=ON")
    assert bootstrap._build_key() != plain


def test_the_build_leaves_amx_out(bootstrap: ModuleType):
    arguments = bootstrap._cmake_args(bootstrap._compiler())
    assert "-DLLAVA_BUILD=OFF" in arguments
    if "-mno-amx" in arguments:
        assert all(flag in arguments for flag in bootstrap.NO_AMX)


def test_every_pin_names_a_version_and_no_index():
    for path in (PROJECT_ROOT / "environments").glob("*.txt"):
        for line in path.read_text().splitlines():
            assert "==" in line, f"{path.name}: {line}"
            assert "://" not in line, f"{path.name}: {line}"


def test_kernels_that_do_not_compile_are_no_reason_to_stop(
    bootstrap: ModuleType, capsys: pytest.CaptureFixture[str]
):
    bootstrap._build_kernels(Path("/bin/false"))
    assert "will be slower" in capsys.readouterr().err


def test_an_environment_that_is_a_link_is_made_where_the_link_points(
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
